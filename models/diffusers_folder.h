// A base model as a folder in the diffusers layout: unet/, vae/, text_encoder/, tokenizer/, scheduler/, and text_encoder_2/ and
// tokenizer_2/ for SDXL. Used by models/stable_diffusion.cpp and models/single_file.cpp.
#pragma once
#include <filesystem>
#include <vector>

#include "models/base_parts.h"
#include "models/stable_diffusion.h"

namespace lorashard {

/// Throws Error(usage) naming what isn't there, Error(bad_data) for what is wrong.
BaseParts read_diffusers_folder(const std::filesystem::path& folder, const StableDiffusionOptions& options);

/// The files that read_diffusers_folder() reads. Throws as it does.
std::vector<NamedFile> diffusers_folder_files(const std::filesystem::path& folder, const StableDiffusionOptions& options);

/// The configs alone, of a folder that need not hold weights. Without vae/ the VAE's is that of SD 1.5 or SDXL's base.
BaseConfigs read_diffusers_configs(const std::filesystem::path& folder);
std::vector<NamedFile> diffusers_config_files(const std::filesystem::path& folder);

/// The VAE of a folder of its own, or the vae/ of a pipeline's.
void read_vae_folder(const std::filesystem::path& folder, const std::string& variant, BaseParts& parts);
std::vector<NamedFile> vae_folder_files(const std::filesystem::path& folder, const std::string& variant);

}  // namespace lorashard
