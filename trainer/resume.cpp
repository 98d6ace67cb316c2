#include "trainer/resume.h"

#include <map>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/machine.h"

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

void require_same_hardware(const Recipe& recipe, const std::string& arithmetic, const TrainingState& saved, const std::string& checkpoint) {
  if (!recipe.train.deterministic) return;
  if (const std::string program = describe_program(); !saved.program.empty() && saved.program != program) {
    log::warning("'{}' was written by another build of lorashard, whose results may differ in their last bits ({})", checkpoint,
                 first_difference(saved.program, program, "there", "here"));
  }
  if (saved.arithmetic.empty() || saved.arithmetic == arithmetic) return;
  const std::string what = fmt::format("resuming from '{}': with deterministic = true a run goes on only on what it began on: {}",
                                       checkpoint, first_difference(saved.arithmetic, arithmetic, "there", "here"));
  if (recipe.checkpoint.resume_on_other_hardware) {
    log::warning("{}; it goes on, since resume_on_other_hardware = true: the adapter will not be that of an undisturbed run bit for bit", what);
    return;
  }
  throw Error(ErrorKind::usage, what,
              "start it on such a host (Slurm: --sbatch=--constraint=...); or set checkpoint.resume_on_other_hardware = true, which gives up "
              "equal bits from here on");
}

}  // namespace lorashard
