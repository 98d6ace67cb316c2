// The low-rank half of a small LoRA layer in one pass over the rows: for few rows on the CPU, five matrix products with
// a side of 4 cost more in calls than in arithmetic. One thread, so the sums have one order.
#pragma once
#include <ATen/core/Tensor.h>

#include "models/layers.h"

namespace lorashard::low_rank {

/// Whether these are for here: fp32 on the CPU, widths in whole vectors, a pair with .grad, and few rows.
bool fits(const at::Tensor& x, const at::Tensor& y, const LoraPair& lora);

/// Returns low = scale * x down^T and adds low up^T to `y`. All contiguous matrices.
at::Tensor forward(const at::Tensor& x, const LoraPair& lora, const at::Tensor& y);

/// With g the gradient of y: adds the pair's gradients to their .grad, and scale * g up down to `dx` if that is
/// defined.
void backward(const at::Tensor& x, const at::Tensor& low, const at::Tensor& g, const LoraPair& lora,
              const at::Tensor& dx);

}  // namespace lorashard::low_rank
