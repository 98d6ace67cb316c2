// Weights from a diffusers or transformers folder into a module, strictly: every missing, unexpected or misshapen key
// is listed at once.
#pragma once
#include <torch/nn/module.h>

#include <filesystem>
#include <string>
#include <vector>

#include "models/safetensors.h"

namespace lorashard {

/// The weights of one component folder (unet/, vae/, text_encoder/): `stem`.safetensors, `stem`.<variant>.safetensors,
/// or the shards of `stem`[.<variant>].safetensors.index.json. Throws Error(usage) naming the files looked for.
StateDict read_component_weights(const std::filesystem::path& folder, const std::string& stem,
                                 const std::string& variant = "");

/// The files that read_component_weights() reads, in the order of their names. Throws as it does.
std::vector<std::filesystem::path> component_weight_files(const std::filesystem::path& folder, const std::string& stem,
                                                          const std::string& variant = "");

/// Points the module's parameters at `state` (no copy where `dtype` and `device` already fit). Keys under `ignored_suffixes` may be
/// extra (such as "position_ids"). Throws Error(bad_data) listing missing, unexpected and misshapen keys of `what`.
void load_state_dict(torch::nn::Module& module, const StateDict& state, const std::string& what,
                     at::ScalarType dtype = at::kFloat, const std::vector<std::string>& ignored_suffixes = {},
                     at::Device device = at::kCPU);

/// Lets go of all of the module's weights: it must not run any more. Its config stays.
void release_weights(torch::nn::Module& module);

}  // namespace lorashard
