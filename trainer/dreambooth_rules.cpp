// The rules between the keys of [dreambooth] and the task. A key that would do nothing is refused: its author expects
// it to do something.
#include <fmt/core.h>

#include <algorithm>

#include "dist/error.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

constexpr const char* kTask = "dreambooth";

[[noreturn]] void has_no_effect(const std::string& name, const std::string& key, const std::string& without,
                                const std::string& hint) {
  throw Error(ErrorKind::usage, fmt::format("{}: '{}' has no effect without {}", name, key, without), hint);
}

/// The first key of [dreambooth] that isn't as an absent one; "" for none.
std::string first_key_given(const Recipe& recipe, const std::vector<std::string>& keys) {
  Recipe given = recipe, absent;
  const auto fields = recipe_fields(given), defaults = recipe_fields(absent);
  for (size_t i = 0; i < fields.size(); ++i) {
    const bool named = keys.empty() ? fields[i].table == kTask
                                    : std::find(keys.begin(), keys.end(), fields[i].name()) != keys.end();
    if (named && value_as_toml(fields[i].member) != value_as_toml(defaults[i].member)) return fields[i].name();
  }
  return "";
}

void require(const std::string& value, const std::string& key, const std::string& meaning, const std::string& name) {
  if (!value.empty()) return;
  throw Error(ErrorKind::usage, fmt::format("{}: '{}' is missing: {}", name, key, meaning),
              fmt::format("add it to the recipe or give --set {}=...", key));
}

}  // namespace

void check_dreambooth_rules(const Recipe& recipe, const std::string& name) {
  const Recipe::DreamBooth& dreambooth = recipe.dreambooth;
  if (recipe.task != kTask) {
    const std::string key = first_key_given(recipe, {});
    if (!key.empty()) has_no_effect(name, key, "task = \"dreambooth\"", "set task, or remove the key");
    return;
  }
  if (!recipe.data.train_data_dir.empty()) {
    throw Error(ErrorKind::usage, fmt::format("{}: 'data.train_data_dir' is not read with task = \"dreambooth\"", name),
                "name the pictures of the subject in dreambooth.instance_data_dir");
  }
  require(dreambooth.instance_data_dir, "dreambooth.instance_data_dir", "the pictures of the subject", name);
  require(dreambooth.instance_prompt, "dreambooth.instance_prompt", "the caption of the subject's pictures", name);
  if (!dreambooth.custom_instance_prompts && recipe.data.caption_column != Recipe().data.caption_column) {
    has_no_effect(name, "data.caption_column", "dreambooth.custom_instance_prompts = true",
                  "without it every instance picture has the caption instance_prompt");
  }
  if (dreambooth.with_prior_preservation) {
    require(dreambooth.class_data_dir, "dreambooth.class_data_dir",
            "prior preservation needs the folder of the class pictures", name);
    require(dreambooth.class_prompt, "dreambooth.class_prompt",
            "prior preservation needs the caption of the class pictures", name);
    return;
  }
  const std::string key = first_key_given(recipe, {"dreambooth.class_data_dir", "dreambooth.class_prompt",
                                                   "dreambooth.num_class_images", "dreambooth.prior_loss_weight"});
  if (!key.empty()) has_no_effect(name, key, "dreambooth.with_prior_preservation = true", "set it, or remove the key");
}

}  // namespace lorashard
