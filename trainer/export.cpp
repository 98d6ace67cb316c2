#include "trainer/export.h"

#include <ATen/ATen.h>

#include "dist/error.h"
#include "models/lora_state_dict.h"

namespace lorashard {

StateDict publishable(const LoraAdapter& adapter, const at::Tensor& flat_parameters) {
  StateDict state = to_diffusers(adapter, flat_parameters);
  for (const auto& [key, value] : state) {
    if (!at::isfinite(value).all().item<bool>()) {
      throw Error(ErrorKind::non_finite, fmt::format("exporting the adapter: '{}' holds NaN or infinite values", key),
                  "the training diverged; go on from an earlier checkpoint with a lower learning_rate");
    }
  }
  return state;
}

Metadata adapter_metadata() { return {{"format", "pt"}}; }

void export_adapter(const LoraAdapter& adapter, const at::Tensor& flat_parameters, const std::filesystem::path& folder) {
  const StateDict state = publishable(adapter, flat_parameters);
  const std::filesystem::path path = folder / "pytorch_lora_weights.safetensors";
  write_safetensors(path, state, adapter_metadata());
  const StateDict written = SafetensorsFile(path).tensors();
  for (const auto& [key, value] : state) {
    const auto it = written.find(key);
    if (it == written.end() || !at::equal(it->second, value)) {
      throw Error(ErrorKind::io, fmt::format("exporting the adapter: '{}' read back from '{}' is not what was written",
                                             key, path.string()),
                  "the disk or file system returns other bytes than it was given");
    }
  }
}

}  // namespace lorashard
