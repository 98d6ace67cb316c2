#include "models/diffusers_folder.h"

#include <fmt/format.h>

#include "dist/error.h"
#include "models/autoencoder_kl.h"
#include "models/clip_text_model.h"
#include "models/state_dict.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDiffusersStem = "diffusion_pytorch_model";
constexpr const char* kTransformersStem = "model";

/// The config of one component; says which is missing.
fs::path config_of(const fs::path& base, const fs::path& folder, const char* name = "config.json") {
  const fs::path config = folder / name;
  if (fs::is_regular_file(config)) return config;
  const bool is_refiner = folder.filename() == "text_encoder" && fs::is_directory(base / "text_encoder_2");
  throw Error(
      ErrorKind::usage,
      fmt::format("loading base model '{}': there is no '{}'", base.string(), config.lexically_relative(base).string()),
      is_refiner ? "it looks like SDXL's refiner, which has no first text encoder and isn't trained"
                 : "expected a folder in diffusers layout (unet, vae, text_encoder, tokenizer, scheduler); for trials: lorashard "
                   "init-base");
}

/// The VAE's own folder, given that or a pipeline's.
fs::path vae_inside(const fs::path& folder) {
  const fs::path inside = folder / "vae";
  return fs::is_regular_file(inside / "config.json") ? inside : folder;
}

TokenizerSource tokenizer_of(const fs::path& folder, const StableDiffusionOptions& options, const std::string& name,
                             const CLIPTextConfig& text_encoder) {
  if (options.tokenizer.empty()) return {folder / name};
  return find_tokenizer(options.tokenizer, name, text_encoder);
}

void add_component(std::vector<NamedFile>& files, const char* component, const fs::path& base, const fs::path& folder,
                   const char* stem, const std::string& variant) {
  const auto add = [&](const fs::path& file) {
    files.emplace_back(fmt::format("{}/{}", component, file.filename().string()), file);
  };
  add(config_of(base, folder));
  if (!stem) return;
  for (const fs::path& file : component_weight_files(folder, stem, variant)) add(file);
}

/// With `stem` of weights null, the configs alone.
std::vector<NamedFile> files_without_tokenizers(const fs::path& folder, const char* unet_stem, const char* text_stem,
                                                const std::string& variant) {
  std::vector<NamedFile> files;
  add_component(files, "unet", folder, folder / "unet", unet_stem, variant);
  add_component(files, "text_encoder", folder, folder / "text_encoder", text_stem, variant);
  if (!read_unet_config(folder / "unet" / "config.json").addition_embed_type.empty())
    add_component(files, "text_encoder_2", folder, folder / "text_encoder_2", text_stem, variant);
  files.emplace_back("scheduler/scheduler_config.json",
                     config_of(folder, folder / "scheduler", "scheduler_config.json"));
  return files;
}

}  // namespace

BaseConfigs read_diffusers_configs(const fs::path& folder) {
  BaseConfigs configs;
  configs.unet = read_unet_config(config_of(folder, folder / "unet"));
  configs.text_encoder = read_text_encoder_config(config_of(folder, folder / "text_encoder"));
  if (!configs.unet.addition_embed_type.empty())
    configs.text_encoder_2 = read_text_encoder_config(config_of(folder, folder / "text_encoder_2"));
  configs.scheduler = read_scheduler_config(config_of(folder, folder / "scheduler", "scheduler_config.json"));
  // A VAE in one file takes the place of the folder's, whose config it then needs.
  const fs::path vae = folder / "vae" / "config.json";
  configs.vae = fs::is_regular_file(vae) ? read_vae_config(vae)
                : configs.is_sdxl()      ? sdxl_configs().vae
                                         : sd15_configs().vae;
  return configs;
}

std::vector<NamedFile> diffusers_config_files(const fs::path& folder) {
  std::vector<NamedFile> files = files_without_tokenizers(folder, nullptr, nullptr, "");
  add_component(files, "vae", folder, folder / "vae", nullptr, "");
  return files;
}

void read_vae_folder(const fs::path& folder, const std::string& variant, BaseParts& parts) {
  const fs::path vae = vae_inside(folder);
  parts.configs.vae = read_vae_config(config_of(folder, vae));
  parts.vae = {vae.string(), normalise_vae_keys(read_component_weights(vae, kDiffusersStem, variant))};
}

std::vector<NamedFile> vae_folder_files(const fs::path& folder, const std::string& variant) {
  std::vector<NamedFile> files;
  add_component(files, "vae", folder, vae_inside(folder), kDiffusersStem, variant);
  return files;
}

BaseParts read_diffusers_folder(const fs::path& folder, const StableDiffusionOptions& options) {
  BaseParts parts;
  parts.configs = read_diffusers_configs(folder);
  const auto text_encoder = [&](const char* name) -> Weights {
    const fs::path place = folder / name;
    return {place.string(), normalise_text_encoder_keys(read_component_weights(place, kTransformersStem, options.variant))};
  };
  parts.text_encoder = text_encoder("text_encoder");
  parts.tokenizer = tokenizer_of(folder, options, "tokenizer", parts.configs.text_encoder);
  if (parts.configs.is_sdxl()) {
    parts.text_encoder_2 = text_encoder("text_encoder_2");
    parts.tokenizer_2 = tokenizer_of(folder, options, "tokenizer_2", *parts.configs.text_encoder_2);
  }
  const fs::path unet = folder / "unet";
  parts.unet = {unet.string(), read_component_weights(unet, kDiffusersStem, options.variant)};
  if (options.vae_folder.empty()) {
    config_of(folder, folder / "vae");
    read_vae_folder(folder / "vae", options.variant, parts);
  }
  return parts;
}

std::vector<NamedFile> diffusers_folder_files(const fs::path& folder, const StableDiffusionOptions& options) {
  std::vector<NamedFile> files = files_without_tokenizers(folder, kDiffusersStem, kTransformersStem, options.variant);
  const BaseConfigs configs = read_diffusers_configs(folder);
  add_tokenizer_files(files, "tokenizer", tokenizer_of(folder, options, "tokenizer", configs.text_encoder));
  if (configs.is_sdxl())
    add_tokenizer_files(files, "tokenizer_2", tokenizer_of(folder, options, "tokenizer_2", *configs.text_encoder_2));
  if (options.vae_folder.empty())
    add_component(files, "vae", folder, folder / "vae", kDiffusersStem, options.variant);
  return files;
}

}  // namespace lorashard
