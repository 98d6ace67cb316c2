// AdamW on the adapter's one flat tensor: at::_fused_adamw_, the same update as torch.optim.AdamW. Clipping beside it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace lorashard {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, weight_decay = 1e-2, epsilon = 1e-8;
};

class AdamW {
 public:
  /// `parameters`: fp32 [P], updated in place by step().
  AdamW(at::Tensor parameters, const AdamWOptions& options);
  void step(const at::Tensor& gradient, double learning_rate);
  /// step() where `found_inf` (fp32 [], on the parameters' device) is 0, and nothing where it is 1, which the device alone
  /// needs to know: the host doesn't wait. settle() must follow.
  void step_unless(const at::Tensor& found_inf, const at::Tensor& gradient, double learning_rate);
  /// What found_inf was: a skipped update isn't counted.
  void settle(bool skipped) { updates -= skipped ? 1 : 0; }

  /// What a checkpoint keeps. fp32 [P] each, and the number of updates applied.
  at::Tensor exp_avg, exp_avg_sq;
  int64_t updates = 0;

 private:
  void update(const at::Tensor& gradient, double learning_rate, const std::optional<at::Tensor>& found_inf);

  at::Tensor parameters_, step_;
  AdamWOptions options_;
};

/// The 2-norm of `gradient` (fp32 [P]); scales it by max_norm / (norm + 1e-6) where that is below 1 (torch.nn.utils.clip_grad_norm_).
/// Pure function of the gradient: the same bits on every rank. Returns the norm before clipping.
double clip_gradient(at::Tensor& gradient, double max_norm);
/// The same by tensor operations alone, on any device: the host doesn't wait. Returns the norm, fp64 [].
at::Tensor clip_gradient_without_waiting(at::Tensor& gradient, double max_norm);

}  // namespace lorashard
