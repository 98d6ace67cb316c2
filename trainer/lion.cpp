#include "trainer/lion.h"

#include <ATen/ops/zeros_like.h>

namespace lorashard {

Lion::Lion(at::Tensor parameters, std::vector<ParameterGroup> groups, const LionOptions& options)
    : Optimizer(std::move(parameters), std::move(groups)), options_(options) {
  exp_avg_ = keep("exp_avg", at::zeros_like(parameters_));
}

void Lion::update(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  const at::Tensor direction = exp_avg_.mul(options_.beta1).add_(gradient, 1.0 - options_.beta1).sign_();
  for (size_t i = 0; i < groups_.size(); ++i) {
    const std::vector<at::Tensor> parameters = groups_[i].ranges_of(parameters_),
                                  steps = groups_[i].ranges_of(direction);
    for (size_t j = 0; j < parameters.size(); ++j) {
      parameters[j].mul_(1.0 - learning_rates[i] * groups_[i].weight_decay);
      parameters[j].add_(steps[j], -learning_rates[i]);
    }
  }
  exp_avg_.mul_(options_.beta2).add_(gradient, 1.0 - options_.beta2);
}

}  // namespace lorashard
