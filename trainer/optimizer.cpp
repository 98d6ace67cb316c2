#include "trainer/optimizer.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include "dist/error.h"

namespace lorashard {
namespace {

void check_flat(const at::Tensor& tensor, const char* what) {
  LORASHARD_CHECK(tensor.defined() && tensor.dim() == 1 && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
                  "{}: expected one contiguous fp32 tensor of one dimension", what);
}

}  // namespace

Optimizer::Optimizer(at::Tensor parameters, std::vector<ParameterGroup> groups)
    : parameters_(std::move(parameters)), groups_(std::move(groups)) {
  check_flat(parameters_, "optimizer's parameters");
  int64_t elements = 0;
  for (const ParameterGroup& group : groups_)
    for (const FlatTensor& tensor : group.tensors) elements += tensor.numel();
  LORASHARD_CHECK(elements == parameters_.numel(), "optimizer: {} elements in groups for {} parameters", elements,
                  parameters_.numel());
}

at::Tensor Optimizer::keep(const std::string& name, at::Tensor tensor) {
  tensors_[name] = tensor;
  return tensor;
}

void Optimizer::check(const at::Tensor& gradient, const std::vector<double>& learning_rates) const {
  check_flat(gradient, "optimizer's gradient");
  LORASHARD_CHECK(gradient.numel() == parameters_.numel(), "optimizer's gradient: {} elements for {} parameters",
                  gradient.numel(), parameters_.numel());
  LORASHARD_CHECK(learning_rates.size() == groups_.size(), "optimizer: {} learning rates for {} groups",
                  learning_rates.size(), groups_.size());
}

void Optimizer::step_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates) {
  check(gradient, learning_rates);
  const at::NoGradGuard no_grad;
  ++updates_;
  update_unless(found_inf, gradient, learning_rates);
}

void Optimizer::update_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates) {
  if (found_inf.item<float>() == 0) update(gradient, learning_rates);
}

void Optimizer::step(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  check(gradient, learning_rates);
  const at::NoGradGuard no_grad;
  ++updates_;
  update(gradient, learning_rates);
}

NamedState Optimizer::state() const {
  NamedState state{.tensors = tensors_, .scalars = {}};
  for (const auto& [name, number] : scalars_)
    std::visit([&, &name = name](auto* value) { state.scalars[name] = *value; }, number);
  return state;
}

void Optimizer::load(const NamedState& saved, int64_t updates) {
  require_same_names(saved, state(), "the optimizer");
  copy_tensors(saved.tensors, tensors_);
  for (const auto& [name, number] : scalars_) {
    std::visit(
        [&, &name = name](auto* value) { *value = std::get<std::decay_t<decltype(*value)>>(saved.scalars.at(name)); },
        number);
  }
  updates_ = updates;
}

}  // namespace lorashard
