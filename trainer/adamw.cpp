#include "trainer/adamw.h"

#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace lorashard {

AdamW::AdamW(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdamWOptions& options)
    : Optimizer(std::move(parameters), std::move(groups)), options_(options) {
  exp_avg_ = keep("exp_avg", at::zeros_like(parameters_));
  exp_avg_sq_ = keep("exp_avg_sq", at::zeros_like(parameters_));
  step_ = at::zeros({}, parameters_.options());
}

void AdamW::update(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  run_kernel(gradient, learning_rates, std::nullopt);
}

void AdamW::update_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates) {
  run_kernel(gradient, learning_rates, found_inf);
}

void AdamW::run_kernel(at::Tensor& gradient, const std::vector<double>& learning_rates,
                       const std::optional<at::Tensor>& found_inf) {
  // The kernel wants the number of this update in a float tensor, one of each tensor; it only reads them.
  step_.fill_(double(updates_));
  for (size_t i = 0; i < groups_.size(); ++i) {
    const std::vector<at::Tensor> parameters = groups_[i].ranges_of(parameters_);
    at::_fused_adamw_(parameters, groups_[i].ranges_of(gradient), groups_[i].ranges_of(exp_avg_),
                      groups_[i].ranges_of(exp_avg_sq_), /*max_exp_avg_sqs=*/{},
                      std::vector<at::Tensor>(parameters.size(), step_), learning_rates[i], options_.beta1,
                      options_.beta2, groups_[i].weight_decay, options_.epsilon, /*amsgrad=*/false,
                      /*maximize=*/false, /*grad_scale=*/{}, found_inf);
  }
}

}  // namespace lorashard
