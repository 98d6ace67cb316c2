// lorashard launch: starts the ranks of a run on this machine and starts them again when one is lost, or hands the run
// to Slurm.
#include <nlohmann/json.hpp>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>

#include "dist/error.h"
#include "dist/log.h"
#include "launch/commands.h"
#include "launch/mpirun.h"
#include "launch/slurm.h"
#include "trainer/recipe.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

struct Options {
  std::string recipe;
  std::vector<std::string> overrides;
  int num_ranks = 1, max_restarts = 3;
  bool slurm = false, print = false;
  SlurmJob job;
};

std::string this_program() { return fs::read_symlink("/proc/self/exe").string(); }

// The newest checkpoint's step, 0 when there is none. By name: a folder of that name appeared by one rename.
int64_t last_checkpoint(const fs::path& output_dir) {
  int64_t last = 0;
  std::error_code missing;
  for (const auto& entry : fs::directory_iterator(output_dir, missing)) {
    const std::string name = entry.path().filename();
    const std::string_view prefix = "checkpoint-";
    int64_t step = 0;
    if (!name.starts_with(prefix)) continue;
    const auto [end, error] = std::from_chars(name.data() + prefix.size(), name.data() + name.size(), step);
    if (error == std::errc() && end == name.data() + name.size()) last = std::max(last, step);
  }
  return last;
}

// The last step in metrics.jsonl, 0 when there is none; a line that a killed run left half written doesn't count.
int64_t last_metrics_step(const fs::path& output_dir) {
  std::ifstream file(output_dir / "metrics.jsonl");
  int64_t last = 0;
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
    if (json.is_object()) last = json.value("global_step", last);
  }
  return last;
}

// Runs the ranks until the run is done, is stopped, fails by a fault that another start would meet again, or is lost
// `max_restarts` times in a row without having come further.
int run_with_restarts(const Options& options, const Recipe& recipe) {
  const fs::path output_dir = recipe.output_dir;
  // Only "latest" goes on where the lost ranks were.
  const bool resumes = recipe.checkpoint.resume_from_checkpoint == "latest";
  std::vector<std::string> arguments = {"train", options.recipe};
  for (const std::string& set : options.overrides) arguments.insert(arguments.end(), {"--set", set});

  Mpirun mpirun;
  const auto progress = [&] { return std::max(last_checkpoint(output_dir), last_metrics_step(output_dir)); };
  int64_t reached = progress();
  for (int restarts = 0;;) {
    const Mpirun::End end = mpirun.run(options.num_ranks, this_program(), arguments);
    if (end.code != exit_code(ErrorKind::rank_lost)) return end.code;
    const int64_t now = progress();
    if (now > reached) restarts = 0;
    reached = std::max(reached, now);
    const int64_t checkpoint = last_checkpoint(output_dir);
    const std::string from = checkpoint > 0 ? fmt::format("from checkpoint-{}", checkpoint) : "from the beginning";
    const std::string lost = fmt::format("{} after step {}", end.how, now);
    if (!resumes) {
      log::error("{}\nhint: restarts need checkpoint.resume_from_checkpoint = \"latest\"; it is \"{}\"", lost,
                 recipe.checkpoint.resume_from_checkpoint);
      return end.code;
    }
    if (mpirun.stop_requested() || restarts == options.max_restarts) {
      const std::string why =
          mpirun.stop_requested()
              ? "not restarted, as a stop was asked for"
              : fmt::format("gave up: {} restarts made no progress beyond step {}", restarts, reached);
      log::error("{}; {}\nhint: started again, the run goes on {}", lost, why, from);
      return end.code;
    }
    ++restarts;
    log::warning("{}; starting again {} ({} of at most {} restarts without progress)", lost, from, restarts,
                 options.max_restarts);
  }
}

int hand_to_slurm(Options& options, const Recipe& recipe) {
  SlurmJob& job = options.job;
  if (recipe.checkpoint.resume_from_checkpoint != "latest") {
    throw Error(
        ErrorKind::usage,
        fmt::format("a job that queues itself again needs checkpoint.resume_from_checkpoint = \"latest\", found \"{}\"",
                    recipe.checkpoint.resume_from_checkpoint));
  }
  job.program = this_program();
  job.recipe = fs::absolute(options.recipe).string();
  job.overrides = options.overrides;
  job.working_dir = fs::current_path();
  job.output_dir = fs::absolute(recipe.output_dir).lexically_normal();
  if (job.job_name.empty()) job.job_name = "lorashard-" + fs::path(options.recipe).stem().string();
  if (job.cpus_per_rank == 0)
    job.cpus_per_rank = static_cast<int>(std::max<int64_t>(1, recipe.distributed.threads_per_rank));
  if (options.print) {
    std::cout << batch_script(job);
    return 0;
  }
  const std::string id = submit(job);
  log::info(
      "submitted as job {}\n  log     {}/slurm-{}.log\n  state   squeue -j {}\n  stop    scancel {}   (with a "
      "checkpoint)",
      id, job.output_dir.string(), id, id, id);
  std::cout << id << "\n";
  return 0;
}

void add_slurm_options(CLI::App& command, Options& options) {
  const std::string group = "Slurm";
  SlurmJob& job = options.job;
  CLI::Option* slurm =
      command.add_flag("--slurm", options.slurm, "write a batch script into output_dir, submit it, print the job id")
          ->group(group);
  const auto add = [&](const std::string& name, auto& value, const std::string& doc) {
    return command.add_option(name, value, doc)->needs(slurm)->group(group);
  };
  job.cpus_per_rank = 0;
  add("--nodes", job.nodes, "how many nodes")->check(CLI::Range(1, 65536));
  add("--ranks-per-node", job.ranks_per_node, "how many ranks on each: one for each GPU, or each core")
      ->check(CLI::Range(1, 4096));
  add("--time", job.time, "limit of one start, as sbatch takes it (1:30:00); the job goes on in the next one");
  add("--partition", job.partition, "the cluster's default, unless given");
  add("--account", job.account, "what the job is charged to");
  add("--gpus-per-node", job.gpus_per_node, "GPUs of each node")->check(CLI::Range(1, 64));
  add("--cpus-per-rank", job.cpus_per_rank, "cores of each rank (default: distributed.threads_per_rank, at least 1)")
      ->check(CLI::Range(1, 4096));
  add("--signal-before", job.signal_before,
      "seconds before the limit at which the ranks are asked to stop (default 120)")
      ->check(CLI::Range(1, 65535));
  add("--job-name", job.job_name, "default: lorashard-RECIPE");
  add("--max-requeues", job.max_requeues, "give up after so many requeues without progress (default 3)")
      ->check(CLI::Range(0, 1000));
  add("--sbatch", job.more_options, "one more sbatch option, as --sbatch=--constraint=a100; may be given several times")
      ->allow_extra_args(false);
  command.add_flag("--print", options.print, "print the script to stdout and submit nothing")
      ->needs(slurm)
      ->group(group);
}

}  // namespace

void add_launch_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("launch", "start the ranks of a run on this machine (mpirun), or as a Slurm job");
  command->add_option("recipe", options->recipe, "TOML file, as for lorashard train")->required();
  CLI::Option* ranks = command->add_option("--ranks", options->num_ranks, "how many processes share the run")
                           ->check(CLI::Range(1, 4096));
  CLI::Option* restarts = command
                              ->add_option("--max-restarts", options->max_restarts,
                                           "give up after so many restarts without progress (default 3)")
                              ->check(CLI::Range(0, 1000));
  command
      ->add_option("--set", options->overrides,
                   "table.key=value: overrides a key of the recipe; may be given several times")
      ->allow_extra_args(false);
  add_slurm_options(*command, *options);
  command->get_option("--slurm")->excludes(ranks)->excludes(restarts);
  command->footer(
      "The adapter does not depend on the number of ranks (deterministic = true, the default). TERM or INT: the ranks "
      "write a\n"
      "checkpoint, exit 75; a second one kills them. When a rank is killed, all start again from the newest "
      "checkpoint.\n"
      "  lorashard launch recipe.toml --slurm --nodes 2 --ranks-per-node 8 --time 4:00:00 --partition gpu --print");
  command->callback([options, ranks] {
    const Recipe recipe = load_recipe(options->recipe, options->overrides);  // said once, before N ranks say it
    if (!options->slurm && ranks->empty()) throw CLI::RequiredError("--ranks (or --slurm)");
    throw Exit{options->slurm ? hand_to_slurm(*options, recipe) : run_with_restarts(*options, recipe)};
  });
}

}  // namespace lorashard
