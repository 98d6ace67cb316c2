// Linear layers with frozen weights, alone or with a LoRA pair, as one node of the autograd graph each: what autograd
// would do with the operations apart in the fewest products, and without gradients nobody asked for.
#pragma once
#include <ATen/core/Tensor.h>

#include "models/layers.h"

namespace lorashard {

/// x W^T + b + residual. x [..., in]; `bias` and `residual` may be undefined.
at::Tensor frozen_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& residual = {});

/// x W^T + b + residual + scale * (x down^T) up^T. The products are done in x's type (the fp32 pair is rounded to it,
/// as autocast does); gradients of the pair are fp32. Where `down` and `up` have a .grad, their gradients are added to
/// it in place while the graph runs backward, and autograd sees none (so torch::autograd::grad() of them finds
/// nothing); otherwise they arrive as usual.
at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora,
                       const at::Tensor& residual = {});

}  // namespace lorashard
