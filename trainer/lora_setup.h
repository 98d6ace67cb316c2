// The recipe's [lora] and [output] as models/ takes them: options of the adapter, the adapter to start from, the files
// beside the diffusers one, and which images a micro-batch's dropout is of. Called by the Trainer.
#pragma once
#include <filesystem>
#include <vector>

#include "data/data_loader.h"
#include "models/lora.h"
#include "models/lora_dropout.h"
#include "models/stable_diffusion.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Of the UNet's or a text encoder's `target_modules`; lora_alpha must be resolved.
LoraOptions lora_options(const Recipe& recipe, const std::vector<std::string>& target_modules);

/// Puts the recipe's layers into `base` and `adapter`, with their first values, on the CPU. Throws Error(usage) for targets that the
/// base doesn't have. Requires: a resolved recipe, an empty adapter.
void make_adapter(const Recipe& recipe, StableDiffusion& base, LoraAdapter& adapter);

/// Fills lora_weights_sha256 from the file or folder lora_weights names. Throws Error(usage) when it isn't there, or
/// when the recipe gives another hash. On a resume adopt_resolved_values() must have run before.
void resolve_lora_weights(Recipe& recipe);

/// Reads lora_weights into `adapter`. Throws what read_adapter() and load_adapter() throw.
void start_from_adapter(const Recipe& recipe, const StableDiffusion& base, LoraAdapter& adapter);

/// The rows of the batch: the slots of its instance images, then those of the class images beside them.
std::vector<DropoutRow> dropout_rows_of(const Batch& batch);

/// output.formats beyond diffusers: `folder`/kohya_lora_weights.safetensors and `folder`/peft/. Each is read again and
/// compared. Throws Error(io). Called by one rank.
void export_other_formats(const LoraAdapter& adapter, const at::Tensor& flat_parameters, const StableDiffusion& base,
                          const Recipe& recipe, const std::filesystem::path& folder);

}  // namespace lorashard
