// A frozen linear layer with its LoRA pair as one node of the autograd graph: what autograd would do with the four
// operations apart (two projections, two updates) in the fewest products and without gradients nobody asked for.
#pragma once
#include <ATen/core/Tensor.h>

#include "models/layers.h"

namespace lorashard {

/// x W^T + b + scale * (x down^T) up^T. x [..., in]; `bias` may be undefined. The products are done in x's type (the
/// fp32 pair is rounded to it, as autocast does); gradients of the pair are fp32. Where `down` and `up` have a .grad,
/// their gradients are added to it in place while the graph runs backward, and autograd sees none (so
/// torch::autograd::grad() of them finds nothing); otherwise they arrive as usual.
at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora);

}  // namespace lorashard
