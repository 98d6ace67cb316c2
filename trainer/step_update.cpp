#include "trainer/step_update.h"

#include <ATen/ATen.h>

#include <cmath>

#include "trainer/clip_gradient.h"

namespace lorashard {
namespace {

StepUpdate update_on_host(GradientReduction& reduction, Communicator& communicator, Optimizer& optimizer,
                          const std::vector<double>& learning_rates, double max_grad_norm,
                          const std::function<void(const at::Tensor&)>& look) {
  GradientReduction::Result reduced = reduction.reduce(communicator);
  look(reduced.mean_gradient);
  StepUpdate update{.mean_loss = reduced.mean_loss, .grad_norm = std::nan(""), .skipped = reduced.skipped};
  if (reduced.skipped) return update;
  update.grad_norm = clip_gradient(reduced.mean_gradient, max_grad_norm);
  optimizer.step(reduced.mean_gradient, learning_rates);
  return update;
}

}  // namespace

StepUpdate reduce_and_update(GradientReduction& reduction, Communicator& communicator, Optimizer& optimizer,
                             const std::vector<double>& learning_rates, double max_grad_norm,
                             const std::function<void(const at::Tensor&)>& look) {
  if (reduction.device().is_cpu()) {
    return update_on_host(reduction, communicator, optimizer, learning_rates, max_grad_norm, look);
  }
  GradientReduction::DeviceResult reduced = reduction.reduce_without_waiting(communicator);
  look(reduced.mean_gradient);
  const at::Tensor norm = clip_gradient_without_waiting(reduced.mean_gradient, max_grad_norm);
  optimizer.step_unless(reduced.found_inf, reduced.mean_gradient, learning_rates);
  // The host's one look at this step.
  const at::Tensor seen = at::stack({reduced.mean_loss, norm, reduced.found_inf.to(at::kDouble)}).cpu();
  const double* values = seen.const_data_ptr<double>();
  StepUpdate update{.mean_loss = values[0], .grad_norm = values[1], .skipped = values[2] != 0};
  if (update.skipped) update.grad_norm = std::nan("");
  optimizer.settle(update.skipped);
  return update;
}

}  // namespace lorashard
