// Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost): what a part of the model needs for its backward
// is not kept but computed again when backward comes to it, as torch.utils.checkpoint does. Called by the UNet's blocks.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace lorashard {

/// f(inputs), of which only `inputs` are kept; undefined ones are passed through. Backward runs f again, with the LoRA dropout rows of the
/// first time, and differentiates that: the same values, since f draws nothing that has state. Without recording it is f(inputs).
/// Gradients of parameters inside f arrive in their .grad; f and what it refers to must outlive the backward.
at::Tensor checkpointed(const std::vector<at::Tensor>& inputs, std::function<at::Tensor(const std::vector<at::Tensor>&)> f);

}  // namespace lorashard
