// Prodigy (Mishchenko and Defazio, Prodigy: An Expeditiously Adaptive Parameter-Free Learner): Adam whose step size d
// is estimated from the gradients; the update of prodigyopt 1.1. ATen operations on the parameters' device; the
// estimate needs two sums over all parameters in host memory, one synchronisation a step.
#pragma once
#include <optional>

#include "trainer/optimizer.h"

namespace lorashard {

struct ProdigyOptions {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  std::optional<double> beta3;  ///< absent: sqrt(beta2)
  bool decouple = true, use_bias_correction = true, safeguard_warmup = true;
  double d0 = 1e-6, d_coef = 1.0;
};

class Prodigy : public Optimizer {
 public:
  /// State: exp_avg, exp_avg_sq, s and p0 (the first parameters), fp32 [P]; d, d_max, d_numerator and k, the updates
  /// with a learning rate above 0. All groups must have one learning rate.
  Prodigy(at::Tensor parameters, std::vector<ParameterGroup> groups, const ProdigyOptions& options);

 private:
  void update(at::Tensor& gradient, const std::vector<double>& learning_rates) override;
  /// Adds weight_decay * scale * parameters to `target`, group by group.
  void decay(const at::Tensor& target, double scale);
  /// d of this update from the sums so far.
  void estimate(double numerator, double denominator);

  ProdigyOptions options_;
  at::Tensor exp_avg_, exp_avg_sq_, s_, p0_;
  double d_, d_max_, d_numerator_ = 0;
  int64_t k_ = 0;
};

}  // namespace lorashard
