#include "trainer/prodigy.h"

#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>

#include "dist/error.h"
#include "trainer/fixed_order_sum.h"

namespace lorashard {

Prodigy::Prodigy(at::Tensor parameters, std::vector<ParameterGroup> groups, const ProdigyOptions& options)
    : Optimizer(std::move(parameters), std::move(groups)), options_(options), d_(options.d0), d_max_(options.d0) {
  exp_avg_ = keep("exp_avg", at::zeros_like(parameters_));
  exp_avg_sq_ = keep("exp_avg_sq", at::zeros_like(parameters_));
  s_ = keep("s", at::zeros_like(parameters_));
  p0_ = keep("p0", parameters_.clone());
  keep("d", &d_);
  keep("d_max", &d_max_);
  keep("d_numerator", &d_numerator_);
  keep("k", &k_);
}

void Prodigy::estimate(double numerator, double denominator) {
  d_numerator_ = numerator;
  const double d_hat = options_.d_coef * numerator / denominator;
  if (d_ == options_.d0) d_ = std::max(d_, d_hat);
  d_max_ = std::max(d_max_, d_hat);
  d_ = d_max_;  // prodigyopt's growth_rate is infinite by default
}

void Prodigy::decay(const at::Tensor& target, double scale) {
  for (const ParameterGroup& group : groups_) {
    if (group.weight_decay == 0) continue;
    const std::vector<at::Tensor> parameters = group.ranges_of(parameters_), targets = group.ranges_of(target);
    for (size_t i = 0; i < parameters.size(); ++i) targets[i].add_(parameters[i], group.weight_decay * scale);
  }
}

void Prodigy::update(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  const double lr = learning_rates.front();
  for (const double other : learning_rates)
    LORASHARD_CHECK(other == lr, "Prodigy: learning rates {} and {}", lr, other);
  if (lr <= 0) return;  // the first update of a warmup: as in prodigyopt it isn't counted
  const double beta1 = options_.beta1, beta2 = options_.beta2, beta3 = options_.beta3.value_or(std::sqrt(beta2));
  const double next = double(k_ + 1);
  const double bias_correction =
      options_.use_bias_correction ? std::sqrt(1 - std::pow(beta2, next)) / (1 - std::pow(beta1, next)) : 1.0;
  const double d = d_, dlr = d * lr * bias_correction, relative_d = d / options_.d0;

  if (!options_.decouple) decay(gradient, 1.0);
  const double numerator = d_numerator_ * beta3 + relative_d * dlr * sum_of_products(gradient, p0_.sub(parameters_));
  exp_avg_.mul_(beta1).add_(gradient, d * (1 - beta1));
  exp_avg_sq_.mul_(beta2).addcmul_(gradient, gradient, d * d * (1 - beta2));
  s_.mul_(beta3).add_(gradient, relative_d * (options_.safeguard_warmup ? d : dlr));
  const double denominator = sum_of_magnitudes(s_);
  if (denominator == 0) return;  // no gradient yet
  estimate(numerator, denominator);

  const at::Tensor root = exp_avg_sq_.sqrt().add_(d_ * options_.epsilon);
  if (options_.decouple) decay(parameters_, -dlr);
  if (beta1 > 0) {
    parameters_.addcdiv_(exp_avg_, root, -dlr);
  } else {
    parameters_.addcdiv_(gradient, root, -dlr * d_);
  }
  ++k_;
}

}  // namespace lorashard
