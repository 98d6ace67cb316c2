// lorashard launch: starts the ranks of a run on this machine.
#include <filesystem>
#include <memory>

#include "dist/error.h"
#include "launch/commands.h"
#include "launch/mpirun.h"
#include "trainer/recipe.h"

namespace lorashard {

void add_launch_command(CLI::App& app) {
  struct Options {
    std::string recipe;
    std::vector<std::string> overrides;
    int num_ranks = 1;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("launch", "start the ranks of a run on this machine (mpirun)");
  command->add_option("recipe", options->recipe, "TOML file, as for lorashard train")->required();
  command->add_option("--ranks", options->num_ranks, "how many processes share the run")->required()->check(CLI::Range(1, 4096));
  command->add_option("--set", options->overrides, "table.key=value: overrides a key of the recipe; may be given several times")
      ->allow_extra_args(false);
  command->footer(
      "The adapter does not depend on --ranks (deterministic = true, the default). TERM or INT: the ranks write a checkpoint, exit\n"
      "75. A rank that is killed ends the run with exit 76. Either way, the same command goes on where it stopped.");
  command->callback([options] {
    load_recipe(options->recipe, options->overrides);  // said once, before N ranks say it
    std::vector<std::string> arguments = {"train", options->recipe};
    for (const std::string& set : options->overrides) {
      arguments.push_back("--set");
      arguments.push_back(set);
    }
    throw Exit{run_under_mpirun(options->num_ranks, std::filesystem::read_symlink("/proc/self/exe").string(), arguments)};
  });
}

}  // namespace lorashard
