// Layers with a LoRA that is more than a plain pair on a Linear: dropout, DoRA (Liu et al., "DoRA: Weight-Decomposed
// Low-Rank Adaptation", as peft 0.21.2 computes it) and convolutions (LoCon). Made of autograd's own operations; the
// plain pair has its own faster path in models/lora_linear.h. Called by models/layers.
#pragma once
#include <ATen/core/Tensor.h>

#include "models/layers.h"

namespace lorashard {

/// Neither DoRA nor, now, dropout.
bool is_plain(const LoraPair& lora);

/// x W^T + b + residual + scale * up(rank_dropout(down(dropout(x)))); with DoRA of x W^T + b by the weight
/// magnitude / ||W + scale up down|| * (W + scale up down), norms over each output's inputs and constant for the
/// gradient. x [..., in]; with dropout its first dimension are the images. `bias` and `residual` may be undefined.
at::Tensor lora_variant_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                               const LoraPair& lora, const at::Tensor& residual = {});

/// The same of a convolution: down has the layer's kernel, stride and padding, up is 1x1. x [B, in, h, w].
at::Tensor lora_conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora,
                       int64_t stride, int64_t padding);

/// ||W + scale up down|| of each output in fp32, [out]: where DoRA's magnitudes start.
at::Tensor dora_norm(const at::Tensor& weight, const LoraPair& lora);

}  // namespace lorashard
