#include "models/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <string_view>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "models/sampling_config.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxConfigBytes = 1 << 20;
// Bounds that no model comes near: they keep a broken config from asking for petabytes.
constexpr int64_t kMaxChannels = 1 << 16;
constexpr int64_t kMaxVocabulary = 1 << 24;
constexpr int64_t kMaxLayers = 128;
constexpr size_t kMaxBlocks = 16;
constexpr std::array<std::string_view, 3> kNotJson = {"-Infinity", "Infinity", "NaN"};

/// Python's json writes -Infinity and NaN (lambda_min_clipped of DPMSolverMultistepScheduler), which JSON doesn't know:
/// null, so that the key has its default. What stands in strings stays.
std::string without_infinities(const std::string& text) {
  std::string out;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\' && i + 1 < text.size()) out += text[i++];
    if (!in_string) {
      const auto word = std::ranges::find_if(
          kNotJson, [&](std::string_view name) { return text.compare(i, name.size(), name) == 0; });
      if (word != kNotJson.end()) {
        out += "null";
        i += word->size() - 1;
        continue;
      }
    }
    out += text[i];
  }
  return out;
}

/// One config.json: typed reading of its keys, with the file and the key in every error.
class ConfigFile {
 public:
  explicit ConfigFile(const std::filesystem::path& path) : path_(path.string()) {
    try {
      json_ = Json::parse(without_infinities(read_file(path, kMaxConfigBytes)));
    } catch (const Json::exception& error) {
      throw fault(fmt::format("not JSON: {}", error.what()));
    }
    if (!json_.is_object()) throw fault("expected a JSON object");
  }

  /// Goes into the object at `key` where there is one.
  void descend(const char* key) {
    if (json_.contains(key) && json_[key].is_object()) json_ = Json(json_[key]);
  }

  /// Whether the key is there with a value; null counts as absent.
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }

  int64_t integer(const char* key, int64_t otherwise, int64_t min, int64_t max) const {
    return has(key) ? to_integer(key, json_[key], min, max) : otherwise;
  }
  double number(const char* key, double otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_number()) throw unexpected(key, "a number");
    return json_[key].get<double>();
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_boolean()) throw unexpected(key, "true or false");
    return json_[key].get<bool>();
  }
  std::string text(const char* key, const std::string& otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_string()) throw unexpected(key, "a string");
    return json_[key].get<std::string>();
  }
  std::string text_of(const char* key, const std::string& otherwise, const std::vector<std::string>& allowed) const {
    const std::string value = text(key, otherwise);
    if (std::find(allowed.begin(), allowed.end(), value) == allowed.end()) {
      throw fault(
          fmt::format("'{}' is \"{}\", which isn't supported (supported: {})", key, value, fmt::join(allowed, ", ")));
    }
    return value;
  }
  std::vector<std::string> texts(const char* key, const std::vector<std::string>& otherwise,
                                 const std::vector<std::string>& allowed) const {
    if (!has(key)) return otherwise;
    if (!json_[key].is_array()) throw unexpected(key, "a list of strings");
    std::vector<std::string> values;
    for (const Json& item : json_[key]) {
      if (!item.is_string()) throw unexpected(key, "a list of strings");
      values.push_back(item.get<std::string>());
      if (std::find(allowed.begin(), allowed.end(), values.back()) == allowed.end()) {
        throw fault(fmt::format("'{}' has \"{}\", which isn't supported (supported: {})", key, values.back(),
                                fmt::join(allowed, ", ")));
      }
    }
    return values;
  }
  /// A list of `count` integers (of any count when 0), or one integer for all of them.
  std::vector<int64_t> integers(const char* key, const std::vector<int64_t>& otherwise, size_t count, int64_t min,
                                int64_t max) const {
    std::vector<int64_t> values = otherwise;
    if (has(key)) {
      values.clear();
      if (!json_[key].is_array()) {
        values.assign(std::max<size_t>(count, 1), to_integer(key, json_[key], min, max));
      } else {
        for (const Json& item : json_[key]) values.push_back(to_integer(key, item, min, max));
      }
    }
    if (values.empty() || values.size() > kMaxBlocks)
      throw fault(fmt::format("'{}' has {} entries", key, values.size()));
    if (count > 0 && values.size() != count)
      throw fault(fmt::format("'{}' has {} entries, expected {}", key, values.size(), count));
    return values;
  }
  /// A list of `count` numbers; empty where there is none.
  std::vector<double> numbers(const char* key, size_t count) const {
    std::vector<double> values;
    if (!has(key)) return values;
    const std::string expected = fmt::format("{} numbers", count);
    if (!json_[key].is_array() || json_[key].size() != count) throw unexpected(key, expected);
    for (const Json& item : json_[key]) {
      if (!item.is_number()) throw unexpected(key, expected);
      values.push_back(item.get<double>());
    }
    return values;
  }
  /// An integer, or a list whose entries are all the same.
  int64_t same_integer(const char* key, int64_t otherwise, int64_t min, int64_t max) const {
    const std::vector<int64_t> values = integers(key, {otherwise}, 0, min, max);
    if (std::any_of(values.begin(), values.end(), [&](int64_t v) { return v != values[0]; }))
      throw unsupported(key, "one value for all blocks");
    return values[0];
  }
  /// Refuses any value of `key` but `allowed`, the one that lorashard's modules are built for (a list of nothing else
  /// is fine too).
  void only(const char* key, const Json& allowed) const {
    if (!json_.contains(key) || json_[key] == allowed) return;
    const Json& value = json_[key];
    if (value.is_null() && allowed == Json(false)) return;
    if (value.is_array() && std::all_of(value.begin(), value.end(), [&](const Json& item) { return item == allowed; }))
      return;
    throw unsupported(key, allowed.dump());
  }
  bool lists(const char* key, const std::string& item) const {
    return has(key) && json_[key].is_array() &&
           std::find(json_[key].begin(), json_[key].end(), item) != json_[key].end();
  }

  Error fault(const std::string& why) const {
    return Error(ErrorKind::bad_data, fmt::format("reading model config '{}': {}", path_, why),
                 "expected a Stable Diffusion 1.x, 2.x or SDXL model in the diffusers layout");
  }

 private:
  std::string shown(const char* key) const {
    return json_[key].dump(-1, ' ', true, Json::error_handler_t::replace).substr(0, 200);
  }
  Error unexpected(const char* key, const std::string& expected) const {
    return fault(fmt::format("'{}' is {}, expected {}", key, shown(key), expected));
  }
  Error unsupported(const char* key, const std::string& supported) const {
    return fault(fmt::format("'{}' is {}, which isn't supported (supported: {})", key, shown(key), supported));
  }
  int64_t to_integer(const char* key, const Json& value, int64_t min, int64_t max) const {
    const bool fits = value.is_number_unsigned()  ? value.get<uint64_t>() <= static_cast<uint64_t>(max)
                      : value.is_number_integer() ? value.get<int64_t>() <= max
                                                  : false;
    if (!fits || value.get<int64_t>() < min) throw unexpected(key, fmt::format("an integer from {} to {}", min, max));
    return value.get<int64_t>();
  }

  std::string path_;
  Json json_;
};

void require_divisible(const ConfigFile& file, const char* what, int64_t channels, int64_t by) {
  if (channels % by != 0)
    throw file.fault(fmt::format("block_out_channels has {}, which {} {} doesn't divide", channels, what, by));
}

/// What diffusers can build and lorashard's UNet can't.
void refuse_other_unets(const ConfigFile& file) {
  file.only("center_input_sample", false);
  file.only("mid_block_type", "UNetMidBlock2DCrossAttn");
  file.only("only_cross_attention", false);
  file.only("mid_block_only_cross_attention", false);
  file.only("downsample_padding", 1);
  file.only("mid_block_scale_factor", 1);
  file.only("dropout", 0.0);
  file.only("act_fn", "silu");
  file.only("reverse_transformer_layers_per_block", nullptr);
  file.only("encoder_hid_dim", nullptr);
  file.only("encoder_hid_dim_type", nullptr);
  file.only("num_attention_heads", nullptr);
  file.only("dual_cross_attention", false);
  file.only("class_embed_type", nullptr);
  file.only("num_class_embeds", nullptr);
  file.only("class_embeddings_concat", false);
  file.only("resnet_time_scale_shift", "default");
  file.only("resnet_skip_time_act", false);
  file.only("resnet_out_scale_factor", 1.0);
  file.only("time_embedding_type", "positional");
  file.only("time_embedding_dim", nullptr);
  file.only("time_embedding_act_fn", nullptr);
  file.only("timestep_post_act", nullptr);
  file.only("time_cond_proj_dim", nullptr);
  file.only("conv_in_kernel", 3);
  file.only("conv_out_kernel", 3);
  file.only("attention_type", "default");
  file.only("cross_attention_norm", nullptr);
}

}  // namespace

UNet2DConditionConfig read_unet_config(const std::filesystem::path& config_json) {
  const ConfigFile file(config_json);
  refuse_other_unets(file);
  UNet2DConditionConfig config;
  config.sample_size = file.same_integer("sample_size", 64, 1, kMaxChannels);
  config.in_channels = file.integer("in_channels", 4, 1, kMaxChannels);
  config.out_channels = file.integer("out_channels", 4, 1, kMaxChannels);
  config.block_out_channels = file.integers("block_out_channels", {320, 640, 1280, 1280}, 0, 1, kMaxChannels);
  const size_t blocks = config.block_out_channels.size();
  config.down_block_types =
      file.texts("down_block_types", config.down_block_types, {"CrossAttnDownBlock2D", "DownBlock2D"});
  config.up_block_types = file.texts("up_block_types", config.up_block_types, {"CrossAttnUpBlock2D", "UpBlock2D"});
  if (config.down_block_types.size() != blocks || config.up_block_types.size() != blocks) {
    throw file.fault(fmt::format("down_block_types, up_block_types and block_out_channels have {}, {} and {} entries",
                                 config.down_block_types.size(), config.up_block_types.size(), blocks));
  }
  config.layers_per_block = file.same_integer("layers_per_block", 2, 1, kMaxLayers);
  config.transformer_layers_per_block =
      file.integers("transformer_layers_per_block", std::vector<int64_t>(blocks, 1), blocks, 1, kMaxLayers);
  config.attention_head_dim =
      file.integers("attention_head_dim", std::vector<int64_t>(blocks, 8), blocks, 1, kMaxChannels);
  config.cross_attention_dim = file.same_integer("cross_attention_dim", 1280, 1, kMaxChannels);
  config.norm_num_groups = file.integer("norm_num_groups", 32, 1, kMaxChannels);
  for (size_t i = 0; i < blocks; ++i) {
    require_divisible(file, "norm_num_groups", config.block_out_channels[i], config.norm_num_groups);
    require_divisible(file, "attention_head_dim", config.block_out_channels[i], config.attention_head_dim[i]);
  }
  config.norm_eps = file.number("norm_eps", 1e-5);
  config.use_linear_projection = file.boolean("use_linear_projection", false);
  config.upcast_attention = file.boolean("upcast_attention", false);
  config.flip_sin_to_cos = file.boolean("flip_sin_to_cos", true);
  config.freq_shift = file.integer("freq_shift", 0, 0, 1);
  config.addition_embed_type = file.text_of("addition_embed_type", "", {"", "text_time"});
  if (!config.addition_embed_type.empty()) {
    config.addition_time_embed_dim = file.integer("addition_time_embed_dim", 0, 1, kMaxChannels);
    config.projection_class_embeddings_input_dim =
        file.integer("projection_class_embeddings_input_dim", 0, 1, kMaxChannels);
  }
  return config;
}

AutoencoderKLConfig read_vae_config(const std::filesystem::path& config_json) {
  const ConfigFile file(config_json);
  file.only("act_fn", "silu");
  file.only("shift_factor", nullptr);
  file.only("use_quant_conv", true);
  file.only("use_post_quant_conv", true);
  file.only("mid_block_add_attention", true);
  AutoencoderKLConfig config;
  config.in_channels = file.integer("in_channels", 3, 1, kMaxChannels);
  config.out_channels = file.integer("out_channels", 3, 1, kMaxChannels);
  config.latent_channels = file.integer("latent_channels", 4, 1, kMaxChannels);
  config.block_out_channels = file.integers("block_out_channels", {64}, 0, 1, kMaxChannels);
  const size_t blocks = config.block_out_channels.size();
  const auto down = file.texts("down_block_types", {"DownEncoderBlock2D"}, {"DownEncoderBlock2D"});
  const auto up = file.texts("up_block_types", {"UpDecoderBlock2D"}, {"UpDecoderBlock2D"});
  if (down.size() != blocks || up.size() != blocks) {
    throw file.fault(fmt::format("down_block_types, up_block_types and block_out_channels have {}, {} and {} entries",
                                 down.size(), up.size(), blocks));
  }
  config.layers_per_block = file.integer("layers_per_block", 1, 1, kMaxLayers);
  config.norm_num_groups = file.integer("norm_num_groups", 32, 1, kMaxChannels);
  for (const int64_t channels : config.block_out_channels)
    require_divisible(file, "norm_num_groups", channels, config.norm_num_groups);
  config.scaling_factor = file.number("scaling_factor", 0.18215);
  if (!(config.scaling_factor > 0))
    throw file.fault(fmt::format("'scaling_factor' is {}, expected more than 0", config.scaling_factor));
  config.force_upcast = file.boolean("force_upcast", true);
  const auto channels = static_cast<size_t>(config.latent_channels);
  config.latents_mean = file.numbers("latents_mean", channels);
  config.latents_std = file.numbers("latents_std", channels);
  if (config.latents_mean.empty() != config.latents_std.empty()) throw file.fault("one of 'latents_mean' and 'latents_std' is missing");
  for (const double deviation : config.latents_std)
    if (!(deviation > 0)) throw file.fault(fmt::format("'latents_std' has {}, expected more than 0", deviation));
  return config;
}

CLIPTextConfig read_text_encoder_config(const std::filesystem::path& config_json) {
  ConfigFile file(config_json);
  CLIPTextConfig config;
  config.with_projection = file.lists("architectures", "CLIPTextModelWithProjection");
  file.descend("text_config");
  file.text_of("model_type", "clip_text_model", {"clip_text_model", "clip"});
  config.vocab_size = file.integer("vocab_size", 49408, 1, kMaxVocabulary);
  config.hidden_size = file.integer("hidden_size", 512, 1, kMaxChannels);
  config.intermediate_size = file.integer("intermediate_size", 2048, 1, kMaxChannels);
  config.projection_dim = file.integer("projection_dim", 512, 1, kMaxChannels);
  config.num_hidden_layers = file.integer("num_hidden_layers", 12, 1, kMaxLayers);
  config.num_attention_heads = file.integer("num_attention_heads", 8, 1, kMaxChannels);
  if (config.hidden_size % config.num_attention_heads != 0) {
    throw file.fault(fmt::format("hidden_size is {}, which num_attention_heads {} doesn't divide", config.hidden_size,
                                 config.num_attention_heads));
  }
  config.max_position_embeddings = file.integer("max_position_embeddings", 77, 2, kMaxChannels);
  config.hidden_act = file.text_of("hidden_act", "quick_gelu", {"quick_gelu", "gelu"});
  config.layer_norm_eps = file.number("layer_norm_eps", 1e-5);
  config.eos_token_id = file.integer("eos_token_id", 49407, 0, kMaxVocabulary);
  return config;
}

namespace {

/// EDMEulerScheduler, or EDMDPMSolverMultistepScheduler.
DDPMSchedulerConfig edm_noise_schedule(const ConfigFile& file) {
  DDPMSchedulerConfig config;
  config.num_train_timesteps = file.integer("num_train_timesteps", 1000, 1, 1'000'000);
  config.prediction_type = file.text_of("prediction_type", "epsilon", {"epsilon", "v_prediction"});
  EDMSchedulerConfig edm;
  edm.sigma_min = file.number("sigma_min", edm.sigma_min);
  edm.sigma_max = file.number("sigma_max", edm.sigma_max);
  edm.sigma_data = file.number("sigma_data", edm.sigma_data);
  edm.rho = file.number("rho", edm.rho);
  edm.sigma_schedule = file.text_of("sigma_schedule", "karras", {"karras", "exponential"});
  if (!(edm.sigma_min > 0 && edm.sigma_min < edm.sigma_max && edm.sigma_data > 0 && edm.rho > 0)) {
    throw file.fault(fmt::format("'sigma_min' {}, 'sigma_max' {}, 'sigma_data' {}, 'rho' {}: expected 0 < sigma_min < sigma_max, and "
                                 "the others above 0",
                                 edm.sigma_min, edm.sigma_max, edm.sigma_data, edm.rho));
  }
  config.edm = edm;
  return config;
}

DDPMSchedulerConfig noise_schedule(const ConfigFile& file) {
  const std::string name = file.text("_class_name", "DDPMScheduler");
  // Rectified flow trains another objective; its config lacks a beta schedule.
  if (name.find("FlowMatch") != name.npos)
    throw file.fault(fmt::format("'_class_name' is \"{}\", whose noise schedule isn't supported", name));
  if (name.find("EDM") != name.npos) return edm_noise_schedule(file);
  file.only("trained_betas", nullptr);
  DDPMSchedulerConfig config;
  config.num_train_timesteps = file.integer("num_train_timesteps", 1000, 1, 1'000'000);
  config.beta_start = file.number("beta_start", 0.0001);
  config.beta_end = file.number("beta_end", 0.02);
  if (!(config.beta_start > 0 && config.beta_start <= config.beta_end && config.beta_end < 1)) {
    throw file.fault(fmt::format("'beta_start' {} and 'beta_end' {}: expected 0 < beta_start <= beta_end < 1",
                                 config.beta_start, config.beta_end));
  }
  config.beta_schedule = file.text_of("beta_schedule", "linear", {"linear", "scaled_linear", "squaredcos_cap_v2"});
  config.prediction_type = file.text_of("prediction_type", "epsilon", {"epsilon", "v_prediction", "sample"});
  config.rescale_betas_zero_snr = file.boolean("rescale_betas_zero_snr", false);
  return config;
}

/// `key = value` where the file has another value than `usual`, else "".
std::string unusual(const ConfigFile& file, const char* key, const std::string& usual) {
  const std::string value = file.text(key, usual);
  return value == usual ? "" : fmt::format("{} \"{}\"", key, value);
}

}  // namespace

DDPMSchedulerConfig read_scheduler_config(const std::filesystem::path& scheduler_config_json) {
  return noise_schedule(ConfigFile(scheduler_config_json));
}

SamplingConfig read_sampling_config(const std::filesystem::path& scheduler_config_json) {
  const ConfigFile file(scheduler_config_json);
  SamplingConfig config;
  config.schedule = noise_schedule(file);
  if (const std::string spacing = file.text("timestep_spacing", ""); !spacing.empty())
    config.timestep_spacing = spacing;
  if (file.has("steps_offset")) config.steps_offset = file.integer("steps_offset", 0, 0, 1'000'000);
  if (file.has("set_alpha_to_one")) config.set_alpha_to_one = file.boolean("set_alpha_to_one", false);
  if (file.has("clip_sample")) config.clip_sample = file.boolean("clip_sample", true);
  config.clip_sample_range = file.number("clip_sample_range", 1);
  config.skip_prk_steps = file.boolean("skip_prk_steps", false);
  config.use_karras_sigmas = file.boolean("use_karras_sigmas", false);
  config.final_sigmas_type = file.text_of("final_sigmas_type", "zero", {"zero", "sigma_min"});
  config.algorithm_type = file.text("algorithm_type", "dpmsolver++");
  config.solver_type = file.text("solver_type", "midpoint");
  // Names of DEIS and UniPC, which diffusers replaces too.
  if (config.algorithm_type == "deis") config.algorithm_type = "dpmsolver++";
  if (config.solver_type != "heun") config.solver_type = "midpoint";
  config.solver_order = file.integer("solver_order", 2, 1, 3);
  config.lower_order_final = file.boolean("lower_order_final", true);
  config.euler_at_final = file.boolean("euler_at_final", false);
  config.lambda_min_clipped = file.number("lambda_min_clipped", config.lambda_min_clipped);
  if (file.boolean("thresholding", false)) config.thresholding = "thresholding = true";
  for (const char* key : {"use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "use_flow_sigmas"})
    if (file.boolean(key, false)) config.other_sigmas = fmt::format("{} = true", key);
  config.interpolation_type = unusual(file, "interpolation_type", "linear");
  config.timestep_type = unusual(file, "timestep_type", "discrete");
  if (file.text("variance_type", "").starts_with("learned"))
    config.variance_type = unusual(file, "variance_type", "");
  return config;
}

}  // namespace lorashard
