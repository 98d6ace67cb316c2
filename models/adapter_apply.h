// What an adapter adds to a layer's weight, and adapters merged into the weights of a base. Called by the commands
// generate and fuse, by convert and inspect, and by tests.
#pragma once
#include <ATen/core/Tensor.h>

#include <map>
#include <string>

#include "models/adapter_file.h"
#include "models/layers.h"
#include "models/stable_diffusion.h"

namespace lorashard {

/// The low-rank product alone, scale included, fp32, in the shape of the weight: up down for lora, (w1_a w1_b) *
/// (w2_a w2_b) for loha, kron(w1, w2) for lokr (LyCORIS' formulas; with its mid and t tensors, too), diff for full.
/// `sizes` are the weight's. Throws Error(bad_data) where the tensors don't make that shape.
at::Tensor low_rank_delta(const AdapterModule& module, at::IntArrayRef sizes);

/// What is added to `weight` for the module at `scale`, fp32. With dora_scale the weight becomes
/// dora_scale * (weight + low_rank_delta) / norm(weight + low_rank_delta) at scale 1, and in between it is
/// interpolated, as ComfyUI does, so that scale 0 changes nothing.
at::Tensor delta_weight(const AdapterModule& module, const at::Tensor& weight, double scale = 1);

/// The layers of a base that may carry an adapter: component -> diffusers' path -> layer.
using AdaptableLayers = std::map<std::string, std::map<std::string, AdaptableLayer*>>;
AdaptableLayers adaptable_layers(const StableDiffusion& base);

/// Their names, for read_adapter(): of any base, whatever its shape.
ModuleNames module_names(const StableDiffusion& base);

/// Merges the adapter into the base's weights at `scale`: the layers it names get new weights of their own in the
/// base's type, the others stay views of their files. Nothing changes at scale 0. Several adapters may follow each
/// other. Throws Error(bad_data), before anything is changed, where a layer is missing or has another shape.
void apply_adapter(StableDiffusion& base, const Adapter& adapter, double scale = 1);

}  // namespace lorashard
