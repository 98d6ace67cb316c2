// The field list as text for people: docs/recipe_reference.md and `lorashard help recipe`.
#include <fmt/core.h>

#include "dist/error.h"
#include "trainer/nearest_name.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

std::string default_in_words(const RecipeField& field) {
  const bool required = field.doc.ends_with(" Required.");
  if (required) return "required";
  const std::string value = value_as_toml(field.member);
  return value.empty() ? "absent" : value;
}

std::string as_code(const std::string& text) {
  return text == "required" || text == "absent" ? text : "`" + text + "`";
}

constexpr const char* kIntroduction = R"(# Recipe reference

<!-- Made by `lorashard help recipe --markdown` from trainer/recipe_fields.cpp; don't edit. A test holds it. -->

A recipe is a TOML file of at most 1 MiB. Keys are the flag names of diffusers' training scripts, in tables. An unknown key is
an error that names the nearest known one. Relative paths are relative to the folder the program is started in.

`--set table.key=value` (repeatable) replaces a value of the recipe; the value is TOML, and a word that isn't TOML is taken as a
string: `--set lora.rank=8 --set train.mixed_precision=bf16`. Setting one of two keys that exclude each other
(total_batch_size and gradient_accumulation_steps, max_train_steps and num_train_epochs) drops the other one of the file.

*Identity* says whether the key changes the arithmetic of a run. A resume whose recipe has another value of such a key is refused
with exit code 2; every other key may change between restarts.
)";

}  // namespace

std::string recipe_reference_markdown() {
  Recipe defaults;
  std::string text = kIntroduction, table = "-";
  for (const RecipeField& field : recipe_fields(defaults)) {
    if (field.table != table) {
      table = field.table;
      text += table.empty() ? "\n## Above all tables\n\n" : fmt::format("\n## [{}]\n\n", table);
      text += "| Key | Value | Default | Identity | Meaning |\n|---|---|---|---|---|\n";
    }
    text += fmt::format("| `{}` | {} | {} | {} | {} |\n", field.key, expected_in_words(field),
                        as_code(default_in_words(field)), field.identity.in_words, field.doc);
  }
  return text;
}

std::string recipe_help(const std::string& name) {
  Recipe defaults;
  const std::vector<RecipeField> fields = recipe_fields(defaults);
  std::string text, table = "-";
  std::vector<std::string> names;
  for (const RecipeField& field : fields) {
    names.push_back(field.name());
    if (name.empty() || name == field.table) {
      if (field.table != table) {
        table = field.table;
        text += table.empty() ? "" : fmt::format("\n[{}]\n", table);
      }
      text += fmt::format("{} = {}\n    {}\n", field.key, default_in_words(field), field.doc);
    } else if (name == field.name() || name == field.key) {
      text += fmt::format("{}\n    {}\n    value: {}\n    default: {}\n    identity: {}\n", field.name(), field.doc,
                          expected_in_words(field), default_in_words(field), field.identity.in_words);
    }
  }
  if (text.empty()) {
    const std::string nearest = nearest_name(name, names);
    throw Error(
        ErrorKind::usage, fmt::format("help: a recipe has no key or table '{}'", name),
        nearest.empty() ? "`lorashard help recipe` lists every key" : fmt::format("did you mean '{}'?", nearest));
  }
  return text;
}

}  // namespace lorashard
