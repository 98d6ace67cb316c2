// A base model as one .safetensors file in the original layout (LDM for SD 1.x and 2.x, SGM for SDXL): which family it is, and its
// weights under the names of diffusers. Used by models/stable_diffusion.cpp, models/fuse_base.cpp and
// launch/inspect.cpp.
#pragma once
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "models/base_parts.h"
#include "models/stable_diffusion.h"

namespace lorashard {

/// Whether a base given as `path` is one file: it is a file, or its name ends as one's.
bool names_single_file(const std::filesystem::path& path);

enum class SingleFileFamily { sd1, sd2, sdxl };
std::string to_string(SingleFileFamily family);  ///< "SD 1.x", "SD 2.x", "SDXL"

/// By the keys it holds, whatever their sizes; nothing for a file without UNet and text encoder of one of the families.
std::optional<SingleFileFamily> single_file_family(const SafetensorsFile& file);

/// The configs of SD 1.5, SD 2.1 or SDXL's base. SD 2.x predicts velocity unless the file's global_step is that of 2-base (875000),
/// as in diffusers.
BaseConfigs single_file_configs(const SafetensorsFile& file, SingleFileFamily family);

/// The weights of the UNet and the text encoders among `state`, the tensors of such a file, under the names of diffusers, by component
/// ("unet", "text_encoder", "text_encoder_2"). Views of the same memory, but for OpenCLIP's text_projection, which is stored transposed.
std::map<std::string, StateDict> single_file_components(const StateDict& state, SingleFileFamily family, const BaseConfigs& configs);
/// The name of that text_projection in a file of SDXL.
extern const char* const kTextProjectionOfSdxl;

/// Configs are those of options.config_folder, or single_file_configs(); the tokenizer is options.tokenizer or of
/// options.config_folder. Throws Error(usage) for another kind of model or without a tokenizer, Error(bad_data) for a broken file.
BaseParts read_single_file(const std::filesystem::path& path, const StableDiffusionOptions& options);

/// The files that read_single_file() reads. Throws as it does.
std::vector<NamedFile> single_file_files(const std::filesystem::path& path, const StableDiffusionOptions& options);

/// The VAE alone, of a file that holds one under "first_stage_model." or nothing else; its config is what `parts` has.
void read_single_file_vae(const std::filesystem::path& path, BaseParts& parts);

}  // namespace lorashard
