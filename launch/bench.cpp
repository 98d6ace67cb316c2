// lorashard bench: how fast a recipe would train here, from a few of its steps. Trains them for real, in a folder beside output_dir that
// is removed again, without checkpoints, validation pictures and TensorBoard.
#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <vector>

#include "dist/agreement.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "launch/commands.h"
#include "launch/train.h"
#include "trainer/recipe.h"
#include "trainer/report.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kMark = "lorashard-bench";  // in a folder that a bench may remove

struct Options {
  std::string recipe;
  std::vector<std::string> overrides;
  int64_t steps = 20, left_out = 3;
  bool json = false;
};

/// The run as the recipe has it, but for its end and for what is written.
Recipe bench_recipe(const Options& options) {
  Recipe recipe = load_recipe(options.recipe, options.overrides);
  const fs::path output_dir = fs::path(recipe.output_dir).lexically_normal();
  // Caches are kept where the run itself looks for them; a pack made of plain pictures goes with the rest.
  if (recipe.data.cache_dir.empty()) recipe.data.cache_dir = (output_dir / "cache").string();
  recipe.output_dir = output_dir.string() + ".bench";
  recipe.train.max_train_steps = options.left_out + options.steps;
  recipe.train.num_train_epochs.reset();
  recipe.lr_scheduler = {};
  recipe.checkpoint = {};
  recipe.checkpoint.checkpointing_steps = options.left_out + options.steps + 1;
  recipe.validation = {};
  recipe.report.report_to.clear();
  recipe.debug = {};
  return recipe;
}

/// Rank 0. What an ended bench left is removed; anything else of that name stays.
void make_folder(const fs::path& folder) {
  if (fs::exists(folder) && !fs::exists(folder / kMark)) {
    throw Error(ErrorKind::usage, fmt::format("measuring in '{}': it exists, and isn't a bench's", folder.string()),
                "remove it, or take another output_dir");
  }
  fs::remove_all(folder);
  fs::create_directories(folder);
  write_durably(folder / kMark, "lorashard bench removes this folder\n");
}

int64_t peak_resident_bytes() {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

struct Figures {
  int64_t steps = 0, ranks = 0, peak_resident_bytes = 0, peak_device_bytes = 0;
  double images_per_step = 0, step_ms = 0, fastest_ms = 0, slowest_ms = 0, data_wait_ms = 0, to_first_step_s = 0;
  double images_per_second() const { return 1e3 * images_per_step / step_ms; }
};

Figures figures_of(const std::vector<RecordedStep>& steps, size_t left_out) {
  std::vector<double> times, waits;
  for (size_t i = std::max<size_t>(left_out, 1); i < steps.size(); ++i) {
    times.push_back(1e3 * (steps[i].wall_s - steps[i - 1].wall_s));
    waits.push_back(steps[i].data_wait_ms);
  }
  const auto [fastest, slowest] = std::minmax_element(times.begin(), times.end());
  Figures out{.steps = static_cast<int64_t>(times.size()), .ranks = steps.back().world_size};
  out.peak_device_bytes = steps.back().peak_device_memory_bytes;
  out.step_ms = median(times);
  out.fastest_ms = *fastest;
  out.slowest_ms = *slowest;
  out.data_wait_ms = median(waits);
  out.to_first_step_s = steps.front().wall_s;
  return out;
}

void print(const Figures& f, bool json) {
  if (json) {
    std::cout << nlohmann::ordered_json{{"steps", f.steps},
                                        {"ranks", f.ranks},
                                        {"images_per_step", f.images_per_step},
                                        {"step_ms", f.step_ms},
                                        {"fastest_step_ms", f.fastest_ms},
                                        {"slowest_step_ms", f.slowest_ms},
                                        {"images_per_second", f.images_per_second()},
                                        {"data_wait_ms", f.data_wait_ms},
                                        {"start_to_first_step_s", f.to_first_step_s},
                                        {"peak_resident_memory_bytes", f.peak_resident_bytes},
                                        {"peak_device_memory_bytes", f.peak_device_bytes}}
                     .dump(2)
              << '\n';
    return;
  }
  log::info("{:.3g} images/s: a step of {:g} images on {} rank{} takes {:.1f} ms (median of {}; {:.1f} to {:.1f})", f.images_per_second(),
            f.images_per_step, f.ranks, f.ranks == 1 ? "" : "s", f.step_ms, f.steps, f.fastest_ms, f.slowest_ms);
  log::info("of it rank 0 waits {:.1f} ms for data; from the start to the end of the first step {:.1f} s", f.data_wait_ms, f.to_first_step_s);
  log::info("peak memory of the largest rank: {} MiB{}", f.peak_resident_bytes >> 20,
            f.peak_device_bytes > 0 ? fmt::format(", {} MiB of rank 0's GPU", f.peak_device_bytes >> 20) : "");
}

void bench(const Options& options) {
  fs::path folder;
  train_as_rank({
      .read = [&] {
        const Recipe recipe = bench_recipe(options);
        folder = recipe.output_dir;
        return recipe;
      },
      .before =
          [&](Communicator& communicator) {
            run_agreed(communicator, "making the folder of the bench", [&] {
              if (communicator.world().rank == 0) make_folder(folder);
            });
          },
      .after =
          [&](Communicator& communicator) {
            const std::vector<std::string> peaks = communicator.all_gather(std::to_string(peak_resident_bytes()));
            run_agreed(communicator, "reading what was measured", [&] {
              if (communicator.world().rank != 0) return;
              Figures figures = figures_of(read_metrics(folder / "metrics.jsonl"), static_cast<size_t>(options.left_out));
              const Recipe resolved = load_recipe(folder / "recipe.toml");
              figures.images_per_step = static_cast<double>(resolved.train.total_batch_size.value());
              for (const std::string& peak : peaks)
                figures.peak_resident_bytes = std::max<int64_t>(figures.peak_resident_bytes, std::stoll(peak));
              print(figures, options.json);
              fs::remove_all(folder);
            });
          },
  });
}

}  // namespace

void add_bench_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", "measure how fast a recipe would train here");
  command->add_option("recipe", options->recipe, "TOML file, as for train")->required();
  command->add_option("--set", options->overrides, "table.key=value: overrides a key of the recipe; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--steps", options->steps, "steps that are measured [20]")->check(CLI::Range(1, 1'000'000));
  command->add_option("--left-out", options->left_out, "steps before them that aren't [3]")->check(CLI::Range(1, 1'000'000));
  command->add_flag("--json", options->json, "the figures as JSON on stdout");
  command->footer(
      "Trains these steps for real, in OUTPUT_DIR.bench, which is removed again; OUTPUT_DIR keeps caches that were made. No\n"
      "checkpoints, validation pictures and TensorBoard. As train, alone or under mpirun and srun:\n"
      "  mpirun -n 4 lorashard bench recipe.toml --set train.mixed_precision=\\\"bf16\\\"\n"
      "Against the diffusers script: bench/against_diffusers.py of the sources.");
  command->callback([options] { bench(*options); });
}

}  // namespace lorashard
