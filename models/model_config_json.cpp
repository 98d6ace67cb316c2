// The writing half of models/model_config.h: what save_pretrained of diffusers and transformers would write.
#include <algorithm>
#include <nlohmann/json.hpp>

#include "models/model_config.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

constexpr const char* kDiffusersVersion = "0.42.1";
constexpr const char* kTransformersVersion = "5.23.0";

/// Keys sorted, two spaces of indent, a newline at the end: as Python's libraries save their configs.
std::string dump(const Json& json) { return json.dump(2) + "\n"; }

/// diffusers' configs say one integer where all blocks have the same.
Json one_or_list(const std::vector<int64_t>& values) {
  const bool all_same = std::all_of(values.begin(), values.end(), [&](int64_t v) { return v == values[0]; });
  return all_same ? Json(values[0]) : Json(values);
}

}  // namespace

std::string to_json(const UNet2DConditionConfig& config) {
  Json json = {{"_class_name", "UNet2DConditionModel"},
               {"_diffusers_version", kDiffusersVersion},
               {"act_fn", "silu"},
               {"addition_embed_type", nullptr},
               {"addition_time_embed_dim", nullptr},
               {"attention_head_dim", one_or_list(config.attention_head_dim)},
               {"block_out_channels", config.block_out_channels},
               {"center_input_sample", false},
               {"class_embed_type", nullptr},
               {"conv_in_kernel", 3},
               {"conv_out_kernel", 3},
               {"cross_attention_dim", config.cross_attention_dim},
               {"down_block_types", config.down_block_types},
               {"downsample_padding", 1},
               {"dual_cross_attention", false},
               {"flip_sin_to_cos", config.flip_sin_to_cos},
               {"freq_shift", config.freq_shift},
               {"in_channels", config.in_channels},
               {"layers_per_block", config.layers_per_block},
               {"mid_block_scale_factor", 1},
               {"mid_block_type", "UNetMidBlock2DCrossAttn"},
               {"norm_eps", config.norm_eps},
               {"norm_num_groups", config.norm_num_groups},
               {"num_class_embeds", nullptr},
               {"only_cross_attention", false},
               {"out_channels", config.out_channels},
               {"projection_class_embeddings_input_dim", nullptr},
               {"resnet_time_scale_shift", "default"},
               {"sample_size", config.sample_size},
               {"time_embedding_type", "positional"},
               {"transformer_layers_per_block", one_or_list(config.transformer_layers_per_block)},
               {"up_block_types", config.up_block_types},
               {"upcast_attention", config.upcast_attention},
               {"use_linear_projection", config.use_linear_projection}};
  if (!config.addition_embed_type.empty()) {
    json["addition_embed_type"] = config.addition_embed_type;
    json["addition_time_embed_dim"] = config.addition_time_embed_dim;
    json["projection_class_embeddings_input_dim"] = config.projection_class_embeddings_input_dim;
  }
  return dump(json);
}

std::string to_json(const AutoencoderKLConfig& config) {
  const size_t blocks = config.block_out_channels.size();
  return dump({{"_class_name", "AutoencoderKL"},
               {"_diffusers_version", kDiffusersVersion},
               {"act_fn", "silu"},
               {"block_out_channels", config.block_out_channels},
               {"down_block_types", std::vector<std::string>(blocks, "DownEncoderBlock2D")},
               {"force_upcast", config.force_upcast},
               {"in_channels", config.in_channels},
               {"latent_channels", config.latent_channels},
               {"layers_per_block", config.layers_per_block},
               {"norm_num_groups", config.norm_num_groups},
               {"out_channels", config.out_channels},
               {"scaling_factor", config.scaling_factor},
               {"up_block_types", std::vector<std::string>(blocks, "UpDecoderBlock2D")}});
}

std::string to_json(const CLIPTextConfig& config) {
  // The legacy end id 2 goes with the ids that such configs have; otherwise the two special tokens end the vocabulary.
  const bool is_legacy = config.eos_token_id == 2;
  return dump({{"architectures", {config.with_projection ? "CLIPTextModelWithProjection" : "CLIPTextModel"}},
               {"attention_dropout", 0.0},
               {"bos_token_id", is_legacy ? 0 : config.eos_token_id - 1},
               {"dtype", "float32"},
               {"eos_token_id", config.eos_token_id},
               {"hidden_act", config.hidden_act},
               {"hidden_size", config.hidden_size},
               {"initializer_factor", 1.0},
               {"initializer_range", 0.02},
               {"intermediate_size", config.intermediate_size},
               {"layer_norm_eps", config.layer_norm_eps},
               {"max_position_embeddings", config.max_position_embeddings},
               {"model_type", "clip_text_model"},
               {"num_attention_heads", config.num_attention_heads},
               {"num_hidden_layers", config.num_hidden_layers},
               {"pad_token_id", 1},
               {"projection_dim", config.projection_dim},
               {"transformers_version", kTransformersVersion},
               {"vocab_size", config.vocab_size}});
}

std::string to_json(const DDPMSchedulerConfig& config, bool euler) {
  // PNDM, the scheduler of SD 1.x, knows neither of these two settings.
  const bool needs_ddim = config.rescale_betas_zero_snr || config.prediction_type == "sample";
  Json json = {{"_class_name", euler ? "EulerDiscreteScheduler" : needs_ddim ? "DDIMScheduler" : "PNDMScheduler"},
               {"_diffusers_version", kDiffusersVersion},
               {"beta_end", config.beta_end},
               {"beta_schedule", config.beta_schedule},
               {"beta_start", config.beta_start},
               {"clip_sample", false},
               {"num_train_timesteps", config.num_train_timesteps},
               {"prediction_type", config.prediction_type},
               {"set_alpha_to_one", false},
               {"steps_offset", 1},
               {"timestep_spacing", "leading"},
               {"trained_betas", nullptr}};
  if (euler) {
    json["interpolation_type"] = "linear";
    json["use_karras_sigmas"] = false;
    json.erase("clip_sample");
    json.erase("set_alpha_to_one");
  }
  if (euler || needs_ddim) {
    json["rescale_betas_zero_snr"] = config.rescale_betas_zero_snr;
  } else {
    json["skip_prk_steps"] = true;
  }
  return dump(json);
}

}  // namespace lorashard
