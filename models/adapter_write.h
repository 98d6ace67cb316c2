// LoRA pairs as files of the three layouts that other programs load; each is read again and compared after it was
// written. docs/lora_formats.md says who loads which. Called by `lorashard convert` and the trainer's export.
#pragma once
#include <filesystem>
#include <string>

#include "models/adapter_file.h"

namespace lorashard {

enum class AdapterFormat { diffusers, kohya, peft };
/// "diffusers", "kohya" or "peft"; throws Error(usage) for another.
AdapterFormat parse_adapter_format(const std::string& name);

struct WriteOptions {
  const ModuleNames& names = ModuleNames::standard();
  bool is_sdxl = false;                ///< kohya: original names of UNet layers, lora_te1_ and lora_te2_
  Metadata metadata = {};              ///< added to the file's
  std::string base_model_name = {};    ///< peft's base_model_name_or_path
};

/// All modules must be plain pairs, with or without dora_scale of the outputs (models/adapter_convert.h makes them).
/// diffusers: alpha / rank folded into up, one naming, lora_magnitude_vector.
StateDict to_diffusers(const Adapter& adapter);
/// kohya: one alpha a component (a module whose scale needs another has the difference in up), dora_scale.
StateDict to_kohya(const Adapter& adapter, const WriteOptions& options);
/// What a kohya file says of itself, as far as it is known: ss_network_dim, ss_network_alpha, modelspec.*.
Metadata kohya_metadata(const Adapter& adapter, const WriteOptions& options);

/// Writes `path`: a file, or for peft a folder with adapter_model.safetensors and adapter_config.json for each
/// component (unet/, text_encoder/, text_encoder_2/). Throws Error(io), also where what is read back is another.
void write_adapter(const std::filesystem::path& path, const Adapter& adapter, AdapterFormat format,
                   const WriteOptions& options);

}  // namespace lorashard
