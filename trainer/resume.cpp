#include "trainer/resume.h"

#include <map>

#include "dist/error.h"

namespace lorashard {

void adopt_resolved_values(Recipe& recipe, const TrainingState& saved) {
  // Length and scaled learning rate follow from the total and from the recipe's own values, so that a change of these is seen.
  const Recipe first = parse_recipe(saved.recipe, "recipe of the checkpoint");
  keep_total_batch_size(recipe, first);
  // What was read once need not be there any more.
  if (recipe.lora.lora_weights == first.lora.lora_weights && !std::filesystem::exists(recipe.lora.lora_weights))
    recipe.lora.lora_weights_sha256 = first.lora.lora_weights_sha256;
}

void require_same_run(const Recipe& recipe, const std::string& pack_hash, const std::string& base_hash,
                      const TrainingState& saved, const std::string& checkpoint) {
  const std::string doing = fmt::format("resuming from '{}'", checkpoint);
  const std::string hint =
      "a checkpoint goes on only as the run it belongs to; for another run choose another output_dir, or set "
      "resume_from_checkpoint = \"none\" with an empty one";
  std::map<std::string, std::string> now;
  for (const auto& [key, value] : identity_values(recipe)) now[key] = value;
  for (const auto& [key, value] : identity_values(parse_recipe(saved.recipe, "recipe of the checkpoint"))) {
    const auto it = now.find(key);
    if (it != now.end() && it->second == value) continue;
    throw Error(ErrorKind::usage,
                fmt::format("{}: '{}' was {} there and is {} now", doing, key, value, it == now.end() ? "absent" : it->second),
                hint);
  }
  if (pack_hash != saved.pack_hash) {
    throw Error(ErrorKind::usage, fmt::format("{}: the pack '{}' has other contents than at the first start (hash {:.12}, then {:.12})",
                                              doing, recipe.task == "dreambooth" ? recipe.dreambooth.instance_data_dir : recipe.data.train_data_dir, pack_hash, saved.pack_hash), hint);
  }
  if (base_hash != saved.base_hash) {
    throw Error(ErrorKind::usage, fmt::format("{}: the base model '{}' has other weights or configuration than at the first start "
                                              "(hash {:.12}, then {:.12})",
                                              doing, recipe.model.pretrained_model_name_or_path, base_hash, saved.base_hash), hint);
  }
}

}  // namespace lorashard
