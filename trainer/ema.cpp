#include "trainer/ema.h"

#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

namespace lorashard {

double ema_decay_at(const Recipe::Ema& options, int64_t update) {
  const int64_t averaged = std::max<int64_t>(0, update - options.ema_update_after_step - 1);
  if (averaged == 0) return 0;
  const double n = static_cast<double>(averaged);
  const double decay =
      options.use_ema_warmup ? 1 - std::pow(1 + n / options.ema_inv_gamma, -options.ema_power) : (1 + n) / (10 + n);
  return std::max(std::min(decay, options.ema_decay), options.ema_min_decay);
}

Ema::Ema(const at::Tensor& parameters, const Recipe::Ema& options)
    : options_(options), average_(parameters.detach().clone()) {}

void Ema::step(const at::Tensor& parameters, int64_t update) {
  const at::NoGradGuard no_grad;
  average_.sub_(average_.sub(parameters).mul_(1 - ema_decay_at(options_, update)));
}

AverageInPlace::AverageInPlace(const Ema* ema, const at::Tensor& parameters) {
  if (ema == nullptr) return;
  const at::NoGradGuard no_grad;
  parameters_ = parameters;
  own_ = parameters.clone();
  parameters_.copy_(ema->state().tensors.at("parameters"));
}

AverageInPlace::~AverageInPlace() {
  const at::NoGradGuard no_grad;
  if (own_.defined()) parameters_.copy_(own_);
}

NamedState Ema::state() const { return {.tensors = {{"parameters", average_}}, .scalars = {}}; }

void Ema::load(const NamedState& saved) {
  NamedState mine = state();
  require_same_names(saved, mine, "the moving average");
  copy_tensors(saved.tensors, mine.tensors);
}

}  // namespace lorashard
