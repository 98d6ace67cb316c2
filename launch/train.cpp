// lorashard train: this process is one rank of mpirun or srun, or the whole run when nothing started it.
#include "launch/train.h"

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "dist/agreement.h"
#include "dist/compute_device.h"
#include "dist/error.h"
#include "dist/health.h"
#include "dist/machine.h"
#include "dist/start_deadline.h"
#include "launch/as_rank.h"
#include "launch/commands.h"
#include "trainer/trainer.h"

namespace lorashard {
namespace {

NcclOptions nccl_options(const Recipe& recipe) {
  const double timeout_s = recipe.distributed.collective_timeout_s;  // 0: as good as none
  return {.timeout = std::chrono::milliseconds(static_cast<int64_t>(1e3 * (timeout_s > 0 ? timeout_s : 1e6)))};
}

void train(const TrainingRank& rank, Communicator& communicator, std::unique_ptr<Health>& health, StartDeadline& deadline) {
  Recipe recipe;
  run_agreed(communicator, "reading the recipe", [&] { recipe = rank.read(); });
  require_same(communicator, "the program", describe_program());
  health = std::make_unique<Health>(communicator,
                                    HealthOptions{.collective_timeout_s = recipe.distributed.collective_timeout_s,
                                                  .heartbeat_s = recipe.distributed.heartbeat_s,
                                                  .straggler_warning_s = recipe.distributed.straggler_warning_s,
                                                  .straggler_pace = recipe.distributed.straggler_pace,
                                                  .work_timeout_s = recipe.distributed.work_timeout_s});
  deadline.met();
  if (rank.before) rank.before(communicator);
  recipe.distributed.device = choose_device(communicator, recipe.distributed.device);
  if (recipe.distributed.device == "cpu") {
    Trainer(recipe, communicator).train();
  } else {
    const GpuRank gpu = take_gpu(communicator, nccl_options(recipe), recipe.train.deterministic);
    Trainer(recipe, *gpu.communicator, gpu.device).train();
  }
  if (rank.after) rank.after(communicator);
}

// Before there is any rank to agree with; a recipe that is wrong is told of later, once.
double start_timeout_of(const TrainingRank& rank) {
  try {
    return rank.read().distributed.start_timeout_s;
  } catch (const Error&) {
    return Recipe().distributed.start_timeout_s;
  }
}

}  // namespace

void train_as_rank(const TrainingRank& rank) {
  StartDeadline deadline(start_timeout_of(rank));  // before MPI, which waits for every rank
  run_as_rank([&](Communicator& communicator, std::unique_ptr<Health>& health) { train(rank, communicator, health, deadline); });
}

void add_train_command(CLI::App& app) {
  struct Options {
    std::string recipe;
    std::vector<std::string> overrides;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("train", "train the adapter a recipe describes");
  command->add_option("recipe", options->recipe, "TOML file; docs/recipe_reference.md lists every key")->required();
  command
      ->add_option("--set", options->overrides,
                   "table.key=value: overrides a key of the recipe; may be given several times")
      ->allow_extra_args(false);
  command->footer(
      "Alone it is one process; under mpirun or srun each process is one rank and they share the run:\n"
      "  mpirun -n 4 lorashard train recipe.toml\n"
      "The adapter, its checkpoints and metrics.jsonl are in the recipe's output_dir. Started again, it goes on from "
      "the\n"
      "newest whole checkpoint, on any number of ranks. USR1, USR2, TERM or INT: a checkpoint, then exit 75.");
  command->callback([options] { train_as_rank({.read = [&] { return load_recipe(options->recipe, options->overrides); }}); });
}

}  // namespace lorashard
