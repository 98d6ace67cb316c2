// The adapter as other programs load it: pytorch_lora_weights.safetensors. Called by one rank.
#pragma once
#include <filesystem>

#include "models/lora.h"
#include "models/safetensors.h"

namespace lorashard {

/// The adapter in diffusers' layout with the values of `flat_parameters`: a copy of the adapter's, or their average. Throws
/// Error(non_finite) naming the key when any value is NaN or infinite: such an adapter is never published. For any thread.
StateDict publishable(const LoraAdapter& adapter, const at::Tensor& flat_parameters);

/// Writes `folder`/pytorch_lora_weights.safetensors durably, reads it back and compares every value. Error(io).
void export_adapter(const LoraAdapter& adapter, const at::Tensor& flat_parameters, const std::filesystem::path& folder);

/// The metadata of that file.
Metadata adapter_metadata();

}  // namespace lorashard
