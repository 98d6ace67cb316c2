#include "trainer/lora_setup.h"

#include <algorithm>

#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"
#include "models/adapter_apply.h"
#include "models/adapter_write.h"
#include "models/lora_state_dict.h"

namespace lorashard {

LoraOptions lora_options(const Recipe& recipe, const std::vector<std::string>& target_modules) {
  const Recipe::Lora& lora = recipe.lora;
  return {.rank = lora.rank,
          .alpha = lora.lora_alpha.value_or(static_cast<double>(lora.rank)),
          .dropout = lora.lora_dropout,
          .rank_dropout = lora.rank_dropout,
          .module_dropout = lora.module_dropout,
          .use_rslora = lora.use_rslora,
          .use_dora = lora.use_dora,
          .init = lora.init,
          .target_modules = target_modules,
          .rank_pattern = lora.rank_pattern,
          .alpha_pattern = lora.alpha_pattern};
}

void make_adapter(const Recipe& recipe, StableDiffusion& base, LoraAdapter& adapter) {
  adapter.add("unet", *base.unet, lora_options(recipe, recipe.lora.target_modules));
  if (recipe.lora.train_text_encoder) {
    const LoraOptions options = lora_options(recipe, recipe.lora.text_encoder_target_modules);
    adapter.add("text_encoder", *base.text_encoder, options);
    if (base.is_sdxl()) adapter.add("text_encoder_2", *base.text_encoder_2, options);
  }
  adapter.allocate(static_cast<uint64_t>(recipe.seed));
}

void resolve_lora_weights(Recipe& recipe) {
  Recipe::Lora& lora = recipe.lora;
  if (lora.lora_weights.empty()) return;
  const std::filesystem::path path = lora.lora_weights;
  // A resume whose file is gone has the first start's hash by now.
  if (!std::filesystem::exists(path) && !lora.lora_weights_sha256.empty()) return;
  const std::string found = adapter_hash(path);
  if (!lora.lora_weights_sha256.empty() && lora.lora_weights_sha256 != found)
    throw Error(ErrorKind::usage,
                fmt::format("starting from adapter '{}': it has the hash {}, 'lora.lora_weights_sha256' says {}",
                            path.string(), found, lora.lora_weights_sha256),
                "take lora_weights_sha256 out of the recipe if the new contents are meant");
  lora.lora_weights_sha256 = found;
}

void start_from_adapter(const Recipe& recipe, const StableDiffusion& base, LoraAdapter& adapter) {
  const std::string& path = recipe.lora.lora_weights;
  const Adapter from = read_adapter(path, module_names(base));
  load_adapter(adapter, from, path);
  log::info("starting from adapter '{}' ({}, {} layers)", path, from.format, from.modules.size());
}

std::vector<DropoutRow> dropout_rows_of(const Batch& batch) {
  std::vector<DropoutRow> rows;
  for (const uint64_t slot : batch.slots) rows.push_back({.slot = slot});
  if (batch.class_sample_ids.empty()) return rows;
  for (const uint64_t slot : batch.slots) rows.push_back({.slot = slot, .class_image = true});
  return rows;
}

void export_other_formats(const LoraAdapter& adapter, const at::Tensor& flat_parameters, const StableDiffusion& base,
                          const Recipe& recipe, const std::filesystem::path& folder) {
  const auto wants = [&](const char* format) {
    return std::ranges::find(recipe.output.formats, format) != recipe.output.formats.end();
  };
  if (!wants("kohya") && !wants("peft")) return;
  const ModuleNames names = module_names(base);
  const Adapter copy = to_adapter(adapter, flat_parameters);
  const WriteOptions options{.names = names,
                             .is_sdxl = base.is_sdxl(),
                             .base_model_name = recipe.model.pretrained_model_name_or_path};
  if (wants("kohya")) write_adapter(folder / "kohya_lora_weights.safetensors", copy, AdapterFormat::kohya, options);
  if (wants("peft")) write_adapter(folder / "peft", copy, AdapterFormat::peft, options);
}

}  // namespace lorashard
