// AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization): at::_fused_adamw_, the kernel of
// torch.optim.AdamW(fused=True), on CPU and CUDA.
#pragma once
#include <optional>

#include "trainer/optimizer.h"

namespace lorashard {

struct AdamWOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
};

class AdamW : public Optimizer {
 public:
  /// State: exp_avg, exp_avg_sq, fp32 [P].
  AdamW(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdamWOptions& options);

 private:
  void update(at::Tensor& gradient, const std::vector<double>& learning_rates) override;
  void update_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates) override;
  void run_kernel(at::Tensor& gradient, const std::vector<double>& learning_rates, const std::optional<at::Tensor>& found_inf);

  AdamWOptions options_;
  at::Tensor exp_avg_, exp_avg_sq_, step_;
};

}  // namespace lorashard
