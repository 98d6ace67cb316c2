// A base model before its modules are built: configs, weights by the modules' own parameter names, tokenizers. Filled from a
// diffusers folder (models/diffusers_folder.h) or one file (models/single_file.h), used by models/stable_diffusion.cpp.
#pragma once
#include <string>

#include "models/base_configs.h"
#include "models/base_tokenizer.h"
#include "models/safetensors.h"

namespace lorashard {

struct Weights {
  std::string source;  ///< file or folder, for errors
  StateDict state;     ///< views of the mapped files
};

struct BaseParts {
  BaseConfigs configs;
  Weights unet, vae, text_encoder, text_encoder_2;  ///< the last for SDXL alone
  TokenizerSource tokenizer, tokenizer_2;           ///< the last for SDXL alone
};

}  // namespace lorashard
