// The one mapping between a LoRA layer and its name in adapter files. docs of the traps: design "Choices made".
#pragma once
#include <string>
#include <vector>

#include "models/adapter_file.h"
#include "models/lora.h"
#include "models/safetensors.h"

namespace lorashard {

/// Keys of `modules`' down and up, as diffusers 0.42.1's save_lora_weights names them: "....to_q.lora.down.weight" when
/// all UNet targets are attention projections, "....lora_A.weight" for the whole UNet otherwise; text encoders
/// "text_encoder.text_model.....q_proj.lora_linear_layer.down.weight".
struct LoraKeys {
  std::string down, up, magnitude;  ///< magnitude: "....to_q.lora_magnitude_vector"
};
std::vector<LoraKeys> diffusers_keys(const std::vector<LoraModule>& modules);
struct LayerName {
  std::string component, path;
};
std::vector<LoraKeys> diffusers_keys(const std::vector<LayerName>& layers);

/// The adapter as a diffusers file holds it: fp32 copies, the scale folded into up, no alpha keys; magnitudes of
/// convolutions as [1, out, 1, 1], as peft has them.
StateDict to_diffusers(const LoraAdapter& adapter);
/// The same with the values of `flat_parameters`, a copy of the adapter's made earlier. Touches no tensor of the
/// adapter.
StateDict to_diffusers(const LoraAdapter& adapter, const at::Tensor& flat_parameters);

/// Reads such a file back into the adapter's parameters (unfolding the scale). Strict: Error(bad_data) lists missing,
/// unexpected and misshapen keys of `what`.
void load_diffusers(LoraAdapter& adapter, const StateDict& state, const std::string& what);

/// The adapter as models/adapter_write takes it, with the values of `flat_parameters`: copies, alpha = scale * rank.
Adapter to_adapter(const LoraAdapter& adapter, const at::Tensor& flat_parameters);

/// Takes the adapter's first values from a file's: every layer must be in both, as a LoRA of the same rank. The scale
/// of the file goes into up; DoRA's magnitudes come from the file or, where it has none, are the norms of the weights
/// with the pair. Throws Error(usage) for other layers, ranks or kinds, naming `what`.
void load_adapter(LoraAdapter& adapter, const Adapter& from, const std::string& what);

}  // namespace lorashard
