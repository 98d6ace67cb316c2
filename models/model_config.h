// The config.json of each component, with diffusers' and transformers' names and defaults. Reading throws Error(usage)
// when the file is missing and Error(bad_data) naming the key for values that lorashard's modules can't be built from.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lorashard {

/// diffusers models/unets/unet_2d_condition.py
struct UNet2DConditionConfig {
  int64_t sample_size = 64;  ///< latents' side the model was made for
  int64_t in_channels = 4, out_channels = 4;
  std::vector<std::string> down_block_types = {"CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"};
  std::vector<std::string> up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"};
  std::vector<int64_t> block_out_channels = {320, 640, 1280, 1280};
  int64_t layers_per_block = 2;
  std::vector<int64_t> transformer_layers_per_block = {1, 1, 1, 1};
  std::vector<int64_t> attention_head_dim = {8, 8, 8, 8};  ///< the number of heads a block, whatever its name says
  int64_t cross_attention_dim = 768;
  int64_t norm_num_groups = 32;
  double norm_eps = 1e-5;
  bool use_linear_projection = false;
  bool upcast_attention = false;
  bool flip_sin_to_cos = true;
  int64_t freq_shift = 0;
  /// SDXL: "text_time", with its two sizes; empty otherwise.
  std::string addition_embed_type;
  int64_t addition_time_embed_dim = 0;
  int64_t projection_class_embeddings_input_dim = 0;
};

/// diffusers models/autoencoders/autoencoder_kl.py
struct AutoencoderKLConfig {
  int64_t in_channels = 3, out_channels = 3, latent_channels = 4;
  std::vector<int64_t> block_out_channels = {128, 256, 512, 512};
  int64_t layers_per_block = 2;
  int64_t norm_num_groups = 32;
  double scaling_factor = 0.18215;
  std::vector<double> latents_mean, latents_std;  ///< by channel, both or neither: latents are made standard before scaling_factor
  bool force_upcast = true;
};

/// transformers CLIPTextConfig (the "text_config" part where a file nests it)
struct CLIPTextConfig {
  int64_t vocab_size = 49408, hidden_size = 768, intermediate_size = 3072, projection_dim = 768;
  int64_t num_hidden_layers = 12, num_attention_heads = 12, max_position_embeddings = 77;
  std::string hidden_act = "quick_gelu";  ///< or "gelu"
  double layer_norm_eps = 1e-5;
  int64_t eos_token_id = 49407;  ///< 2 means the legacy pooling: argmax of the ids
  bool with_projection = false;  ///< architectures names CLIPTextModelWithProjection
};

/// diffusers scheduling_edm_euler.py
struct EDMSchedulerConfig {
  double sigma_min = 0.002, sigma_max = 80, sigma_data = 0.5, rho = 7;
  std::string sigma_schedule = "karras";  ///< or exponential
};

/// diffusers scheduling_ddpm.py (scheduler/scheduler_config.json of any scheduler class)
struct DDPMSchedulerConfig {
  int64_t num_train_timesteps = 1000;
  double beta_start = 0.00085, beta_end = 0.012;
  std::string beta_schedule = "scaled_linear";  ///< or linear, squaredcos_cap_v2
  std::string prediction_type = "epsilon";      ///< or v_prediction, sample
  bool rescale_betas_zero_snr = false;
  std::optional<EDMSchedulerConfig> edm;  ///< a base of EDM's formulation, which has no betas
};

UNet2DConditionConfig read_unet_config(const std::filesystem::path& config_json);
AutoencoderKLConfig read_vae_config(const std::filesystem::path& config_json);
CLIPTextConfig read_text_encoder_config(const std::filesystem::path& config_json);
DDPMSchedulerConfig read_scheduler_config(const std::filesystem::path& scheduler_config_json);

/// The same as diffusers and transformers would save them (for init-base). Return JSON text.
std::string to_json(const UNet2DConditionConfig& config);
std::string to_json(const AutoencoderKLConfig& config);
std::string to_json(const CLIPTextConfig& config);
/// With `euler` as SDXL's EulerDiscreteScheduler, otherwise as SD's PNDMScheduler (or DDIMScheduler where only that can say it).
std::string to_json(const DDPMSchedulerConfig& config, bool euler = false);

}  // namespace lorashard
