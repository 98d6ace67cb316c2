// Lion (Chen et al., Symbolic Discovery of Optimization Algorithms, algorithm 2), with decoupled weight decay: the
// update of lion-pytorch. ATen operations on the parameters' device, without host synchronisation.
#pragma once
#include "trainer/optimizer.h"

namespace lorashard {

struct LionOptions {
  double beta1 = 0.9, beta2 = 0.99;
};

class Lion : public Optimizer {
 public:
  /// State: exp_avg, fp32 [P].
  Lion(at::Tensor parameters, std::vector<ParameterGroup> groups, const LionOptions& options);

 private:
  void update(at::Tensor& gradient, const std::vector<double>& learning_rates) override;

  LionOptions options_;
  at::Tensor exp_avg_;
};

}  // namespace lorashard
