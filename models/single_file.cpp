#include "models/single_file.h"

#include <ATen/core/Tensor.h>
#include <fmt/format.h>

#include <algorithm>

#include "dist/error.h"
#include "models/autoencoder_kl.h"
#include "models/diffusers_folder.h"
#include "models/single_file_keys.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kUnet = "model.diffusion_model.";
constexpr const char* kVae = "first_stage_model.";
constexpr const char* kClip = "cond_stage_model.transformer.";
constexpr const char* kOpenClip = "cond_stage_model.model.";
constexpr const char* kFirstOfSdxl = "conditioner.embedders.0.transformer.";
constexpr const char* kSecondOfSdxl = "conditioner.embedders.1.model.";
constexpr double kStepsOf2Base = 875000;

std::string doing(const fs::path& path) { return fmt::format("loading base model '{}'", path.string()); }

bool has_under(const SafetensorsFile& file, const std::string& prefix) {
  const auto keys = file.keys();
  const auto at = std::lower_bound(keys.begin(), keys.end(), prefix);
  return at != keys.end() && at->starts_with(prefix);
}

SingleFileFamily family_of(const SafetensorsFile& file, const fs::path& path) {
  const auto refuse = [&](const std::string& why, const std::string& hint) -> SingleFileFamily {
    throw Error(ErrorKind::usage, fmt::format("{}: {}", doing(path), why), hint);
  };
  const std::string supported = "SD 1.x, SD 2.x and SDXL's base are trained, as a diffusers folder or as one file in the original layout";
  if (file.contains("conditioner.embedders.0.model.text_projection")) return refuse("it is SDXL's refiner", supported);
  const std::string conv_in = std::string(kUnet) + "input_blocks.0.0.weight";
  if (file.contains(conv_in) && file.tensor(conv_in).dim() == 4 && file.tensor(conv_in).size(1) != 4)
    return refuse(fmt::format("its UNet takes {} channels (inpainting, or edits of pictures)", file.tensor(conv_in).size(1)), supported);
  if (const auto family = single_file_family(file)) return *family;
  const auto keys = file.keys();
  return refuse(fmt::format("it holds no UNet and text encoder of SD 1.x, 2.x or SDXL; its first key is '{}'",
                            keys.empty() ? "" : keys.front()),
                supported);
}

std::vector<double> numbers_of(const SafetensorsFile& file, const std::string& key, int64_t count) {
  const at::Tensor numbers = file.tensor(key).to(at::kDouble).contiguous();
  if (numbers.numel() != count)
    throw Error(ErrorKind::bad_data, fmt::format("loading base model: '{}' has {} numbers, expected {}", key, numbers.numel(), count));
  return {numbers.const_data_ptr<double>(), numbers.const_data_ptr<double>() + count};
}

/// SDXL in EDM's formulation, playgroundai/playground-v2.5-1024px-aesthetic (diffusers loaders/single_file_utils.py).
BaseConfigs playground_configs(const SafetensorsFile& file) {
  BaseConfigs configs = sdxl_configs();
  configs.scheduler.edm.emplace();
  configs.vae.scaling_factor = 0.5;
  configs.vae.latents_mean = numbers_of(file, "edm_mean", configs.vae.latent_channels);
  configs.vae.latents_std = numbers_of(file, "edm_std", configs.vae.latent_channels);
  return configs;
}

BaseConfigs configs_of(SingleFileFamily family, const SafetensorsFile& file, const StableDiffusionOptions& options) {
  if (!options.config_folder.empty()) {
    BaseConfigs configs = read_diffusers_configs(options.config_folder);
    configs.vae = read_vae_config(options.config_folder / "vae" / "config.json");
    if (configs.is_sdxl() != (family == SingleFileFamily::sdxl)) {
      throw Error(ErrorKind::bad_data, fmt::format("loading base model: the file holds {}, but the configs in '{}' are {}",
                                                   to_string(family), options.config_folder.string(),
                                                   configs.is_sdxl() ? "SDXL's" : "not SDXL's"));
    }
    return configs;
  }
  return single_file_configs(file, family);
}

TokenizerSource tokenizer_of(const fs::path& path, const StableDiffusionOptions& options, const std::string& name,
                             const CLIPTextConfig& text_encoder) {
  if (!options.tokenizer.empty()) return find_tokenizer(options.tokenizer, name, text_encoder);
  if (!options.config_folder.empty() && fs::is_directory(options.config_folder / name))
    return {options.config_folder / name};
  throw Error(ErrorKind::usage, fmt::format("{}: one file holds no tokenizer", doing(path)),
              "give model.tokenizer_name (on the command line --tokenizer): CLIP's bpe_simple_vocab_16e6.txt.gz, a tokenizer's folder, or "
              "any diffusers folder of the same family");
}

void check_options(const fs::path& path, const StableDiffusionOptions& options) {
  if (!fs::exists(path)) throw Error(ErrorKind::usage, doing(path) + ": there is no such file");
  if (path.extension() != ".safetensors") {
    throw Error(ErrorKind::usage, doing(path) + ": it is not a .safetensors file",
                "pickled weights (.ckpt, .pt, .bin) are not read: they can run code; convert them to safetensors");
  }
  if (!options.variant.empty()) {
    throw Error(ErrorKind::usage, fmt::format("{}: one file has no variant \"{}\"", doing(path), options.variant),
                "leave model.variant out: the weights are read in whatever type they have");
  }
}

}  // namespace

bool names_single_file(const fs::path& path) {
  return fs::is_regular_file(path) || (!fs::is_directory(path) && path.extension() == ".safetensors");
}

std::string to_string(SingleFileFamily family) {
  return family == SingleFileFamily::sd1 ? "SD 1.x" : family == SingleFileFamily::sd2 ? "SD 2.x" : "SDXL";
}

std::optional<SingleFileFamily> single_file_family(const SafetensorsFile& file) {
  if (!has_under(file, kUnet)) return std::nullopt;
  if (has_under(file, kSecondOfSdxl)) return SingleFileFamily::sdxl;
  if (has_under(file, kOpenClip)) return SingleFileFamily::sd2;
  if (has_under(file, kClip)) return SingleFileFamily::sd1;
  return std::nullopt;
}

BaseConfigs single_file_configs(const SafetensorsFile& file, SingleFileFamily family) {
  if (family == SingleFileFamily::sd1) return sd15_configs();
  if (family == SingleFileFamily::sdxl) return file.contains("edm_mean") ? playground_configs(file) : sdxl_configs();
  BaseConfigs configs = sd21_configs();
  const bool is_2_base = file.contains("global_step") && file.tensor("global_step").numel() == 1 &&
                         file.tensor("global_step").item().toDouble() == kStepsOf2Base;
  if (is_2_base) configs.scheduler.prediction_type = "epsilon";
  return configs;
}

const char* const kTextProjectionOfSdxl = "conditioner.embedders.1.model.text_projection";

std::map<std::string, StateDict> single_file_components(const StateDict& state, SingleFileFamily family, const BaseConfigs& configs) {
  const CLIPTextConfig& text = configs.text_encoder;
  std::map<std::string, StateDict> components;
  components["unet"] = unet_of_original(state, kUnet, configs.unet.layers_per_block);
  components["text_encoder"] = family == SingleFileFamily::sd2
                                   ? open_clip_of_original(state, kOpenClip, text.num_hidden_layers, text.with_projection)
                                   : clip_of_original(state, family == SingleFileFamily::sdxl ? kFirstOfSdxl : kClip, text.with_projection);
  if (configs.text_encoder_2) {
    components["text_encoder_2"] = open_clip_of_original(state, kSecondOfSdxl, configs.text_encoder_2->num_hidden_layers,
                                                         configs.text_encoder_2->with_projection);
  }
  return components;
}

BaseParts read_single_file(const fs::path& path, const StableDiffusionOptions& options) {
  check_options(path, options);
  const SafetensorsFile file(path);
  const SingleFileFamily family = family_of(file, path);
  BaseParts parts;
  parts.configs = configs_of(family, file, options);
  const BaseConfigs& configs = parts.configs;
  const StateDict state = file.tensors();
  auto components = single_file_components(state, family, configs);
  const auto weights = [&](const char* prefix, StateDict renamed) -> Weights {
    return {fmt::format("{}: {}", path.string(), prefix), std::move(renamed)};
  };
  parts.unet = weights(kUnet, std::move(components["unet"]));
  if (options.vae_folder.empty()) {
    parts.vae = weights(kVae, vae_of_original(state, kVae, static_cast<int64_t>(configs.vae.block_out_channels.size())));
  }
  const CLIPTextConfig& text = configs.text_encoder;
  const char* const first = family == SingleFileFamily::sdxl ? kFirstOfSdxl : family == SingleFileFamily::sd2 ? kOpenClip : kClip;
  parts.text_encoder = weights(first, std::move(components["text_encoder"]));
  parts.tokenizer = tokenizer_of(path, options, "tokenizer", text);
  if (configs.text_encoder_2) {
    const CLIPTextConfig& second = *configs.text_encoder_2;
    parts.text_encoder_2 = weights(kSecondOfSdxl, std::move(components["text_encoder_2"]));
    parts.tokenizer_2 = tokenizer_of(path, options, "tokenizer_2", second);
  }
  return parts;
}

std::vector<NamedFile> single_file_files(const fs::path& path, const StableDiffusionOptions& options) {
  check_options(path, options);
  const SafetensorsFile file(path);
  const BaseConfigs configs = configs_of(family_of(file, path), file, options);
  std::vector<NamedFile> files;
  if (!options.config_folder.empty()) files = diffusers_config_files(options.config_folder);
  files.emplace_back("checkpoint", path);
  add_tokenizer_files(files, "tokenizer", tokenizer_of(path, options, "tokenizer", configs.text_encoder));
  if (configs.text_encoder_2)
    add_tokenizer_files(files, "tokenizer_2", tokenizer_of(path, options, "tokenizer_2", *configs.text_encoder_2));
  return files;
}

void read_single_file_vae(const fs::path& path, BaseParts& parts) {
  check_options(path, {});
  const SafetensorsFile file(path);
  const StateDict state = file.tensors();
  const auto num_blocks = static_cast<int64_t>(parts.configs.vae.block_out_channels.size());
  // A VAE's own file has no prefix; in diffusers' names it is a folder's.
  const bool is_original = has_under(file, kVae) || has_under(file, "encoder.down.");
  parts.vae = {path.string(), is_original ? vae_of_original(state, has_under(file, kVae) ? kVae : "", num_blocks)
                                          : normalise_vae_keys(state)};
}

}  // namespace lorashard
