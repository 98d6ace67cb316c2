// Adafactor (Shazeer and Stern, Adafactor: Adaptive Learning Rates with Sublinear Memory Cost): the update of
// transformers' Adafactor without first moment. ATen operations on the parameters' device; the root mean squares need
// sums in host memory, two synchronisations a tensor and step.
#pragma once
#include "trainer/optimizer.h"

namespace lorashard {

struct AdafactorOptions {
  double epsilon1 = 1e-30, epsilon2 = 1e-3;  ///< added to squared gradients; least root mean square of parameters
  double clip_threshold = 1.0, decay_rate = -0.8;
  bool scale_parameter = false;  ///< a tensor's step is proportional to its root mean square
};

/// The learning rate that transformers' Adafactor(relative_step=True) gives update `update`, from 1.
double adafactor_relative_step(int64_t update, bool warmup_init);

class Adafactor : public Optimizer {
 public:
  /// State, fp32, the tensors' parts one after another: exp_avg_sq_row and exp_avg_sq_col of those with two dimensions
  /// or more (means over the last and the last but one), exp_avg_sq of the others.
  Adafactor(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdafactorOptions& options);

 private:
  struct Moment {
    at::Tensor row, column, whole;  ///< views of the state; row and column, or whole
  };
  void update(at::Tensor& gradient, const std::vector<double>& learning_rates) override;
  /// The tensor's step before its learning rate.
  at::Tensor direction(const at::Tensor& gradient, Moment& moment) const;

  AdafactorOptions options_;
  std::vector<Moment> moments_;  // of each group's tensors in turn
};

}  // namespace lorashard
