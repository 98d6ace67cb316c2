// Keys of the original (LDM, SGM) layout to the keys of diffusers and transformers, by the rules of diffusers 0.42.1's
// loaders/single_file_utils.py. Used by models/single_file.cpp alone; apart from it so that each rule can be tested on texts.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "models/safetensors.h"

namespace lorashard {

/// "input_blocks.1.1.proj_in.weight" (without "model.diffusion_model.") -> "down_blocks.0.attentions.0.proj_in.weight", for a UNet
/// of `layers_per_block`. Nothing for a key that no UNet of SD has.
std::optional<std::string> diffusers_unet_key(const std::string& key, int64_t layers_per_block);

/// "encoder.mid.attn_1.q.weight" (without "first_stage_model.") -> "encoder.mid_block.attentions.0.to_q.weight", for a VAE of
/// `num_blocks` levels. Nothing for a key that no AutoencoderKL has.
std::optional<std::string> diffusers_vae_key(const std::string& key, int64_t num_blocks);

/// The tensors of `state` under `prefix`, renamed for the modules. Views of the same memory, but for OpenCLIP's text_projection,
/// which is stored transposed. Keys that have no place keep their old name, for load_state_dict() to refuse.
StateDict unet_of_original(const StateDict& state, const std::string& prefix, int64_t layers_per_block);
StateDict vae_of_original(const StateDict& state, const std::string& prefix, int64_t num_blocks);
StateDict clip_of_original(const StateDict& state, const std::string& prefix, bool with_projection);
/// OpenCLIP's layers above `num_hidden_layers` are left out: SD 2.x takes the states before the last.
StateDict open_clip_of_original(const StateDict& state, const std::string& prefix, int64_t num_hidden_layers,
                                bool with_projection);

}  // namespace lorashard
