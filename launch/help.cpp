// lorashard help recipe [KEY]: what a recipe may hold, from the one field list.
#include <cstdio>
#include <memory>

#include "launch/commands.h"
#include "trainer/recipe.h"

namespace lorashard {

void add_help_command(CLI::App& app) {
  struct Options {
    std::string key;
    bool markdown = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("help", "what a recipe may hold: lorashard help recipe [KEY]");
  command->require_subcommand(1);
  CLI::App* recipe = command->add_subcommand("recipe", "the keys of a recipe: all of them, one table's, or one");
  recipe->add_option("key", options->key, "a key (lora.rank, or rank) or a table (lora)");
  recipe->add_flag("--markdown", options->markdown, "docs/recipe_reference.md");
  recipe->callback([options] {
    const std::string text = options->markdown ? recipe_reference_markdown() : recipe_help(options->key);
    std::fputs(text.c_str(), stdout);
  });
}

}  // namespace lorashard
