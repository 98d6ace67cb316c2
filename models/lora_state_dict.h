// The one mapping between a LoRA layer and its name in adapter files. docs of the traps: design "Choices made".
#pragma once
#include <string>
#include <vector>

#include "models/lora.h"
#include "models/safetensors.h"

namespace lorashard {

/// Keys of `modules`' down and up, as diffusers 0.42.1's save_lora_weights names them: "....to_q.lora.down.weight" when
/// all UNet targets are attention projections, "....lora_A.weight" for the whole UNet otherwise; text encoders
/// "text_encoder.text_model.....q_proj.lora_linear_layer.down.weight".
struct LoraKeys {
  std::string down, up;
};
std::vector<LoraKeys> diffusers_keys(const std::vector<LoraModule>& modules);

/// The adapter as a diffusers file holds it: fp32 copies, alpha/rank folded into up, no alpha keys.
StateDict to_diffusers(const LoraAdapter& adapter);
/// The same with the values of `flat_parameters`, a copy of the adapter's made earlier. Touches no tensor of the
/// adapter.
StateDict to_diffusers(const LoraAdapter& adapter, const at::Tensor& flat_parameters);

/// Reads such a file back into the adapter's parameters (unfolding alpha/rank). Strict: Error(bad_data) lists missing,
/// unexpected and misshapen keys of `what`.
void load_diffusers(LoraAdapter& adapter, const StateDict& state, const std::string& what);

}  // namespace lorashard
