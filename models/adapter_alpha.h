// The alphas that stand beside an adapter's tensors instead of among them: PEFT's adapter_config.json, and the same as
// metadata of diffusers' files since 0.35 ("lora_adapter_metadata"). Called by models/adapter_file.
#pragma once
#include <string>

#include "models/adapter_file.h"

namespace lorashard {

/// Sets alpha of every module that has none and that `config_json` (may be empty) or the adapter's metadata covers, so
/// that alpha / rank is its scale (use_rslora: lora_alpha / sqrt(rank)). Throws Error(bad_data), naming `what`, for a
/// config that is no JSON or asks for what isn't computed here.
void set_alphas(Adapter& adapter, const std::string& config_json, const std::string& what);

}  // namespace lorashard
