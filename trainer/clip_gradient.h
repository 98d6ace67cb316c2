// The norm of a step's gradient, and clipping to it. Called by the train step on the mean gradient, over all groups at
// once.
#pragma once
#include <ATen/core/Tensor.h>

namespace lorashard {

/// The 2-norm of `gradient` (fp32 [P]); scales it by max_norm / (norm + 1e-6) where that is below 1
/// (torch.nn.utils.clip_grad_norm_), but never with a max_norm of 0 (as in sd-scripts). Pure function of the gradient: the same bits on
/// every rank. Returns the norm before clipping.
double clip_gradient(at::Tensor& gradient, double max_norm);
/// The same by tensor operations alone, on any device: the host doesn't wait. Returns the norm, fp64 [].
at::Tensor clip_gradient_without_waiting(at::Tensor& gradient, double max_norm);

}  // namespace lorashard
