#include "models/lora_linear.h"

#include <ATen/ATen.h>

#include "models/autograd_node.h"

namespace lorashard {
namespace {

using torch::autograd::variable_list;

/// Adds a b to the .grad of `parameter`, or returns it where there is none to add to.
at::Tensor accumulate(const at::Tensor& parameter, const at::Tensor& a, const at::Tensor& b) {
  at::Tensor& grad = parameter.mutable_grad();
  if (!grad.defined()) return at::mm(a, b).to(parameter.scalar_type());
  if (a.scalar_type() == grad.scalar_type())
    grad.addmm_(a, b);
  else
    grad.add_(at::mm(a, b));
  return {};
}

struct LoraLinearBackward : torch::autograd::Node {
  at::Tensor x, low, weight;  // x and `scale * x down^T` as matrices
  LoraPair lora;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {{}, {}, {}};
    const BelowAutograd guard;
    const at::Tensor g = grads[0].reshape({-1, weight.size(0)});
    at::Tensor g_low = at::mm(g, lora.up.to(g.scalar_type()));
    if (lora.scale != 1) g_low.mul_(lora.scale);
    at::Tensor dx;
    if (task_should_compute_output(0)) {
      dx = at::mm(g, weight);
      dx.addmm_(g_low, lora.down.to(g.scalar_type()));
      auto shape = grads[0].sizes().vec();
      shape.back() = weight.size(1);
      dx = dx.view(shape);
    }
    return {dx, accumulate(lora.down, g_low.t(), x), accumulate(lora.up, g.t(), low)};
  }

  void release_variables() override { x = low = weight = at::Tensor(); }
  std::string name() const override { return "LoraLinearBackward"; }
};

}  // namespace

at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora) {
  at::Tensor x2d, low, y;
  {
    const BelowAutograd guard;
    x2d = x.reshape({-1, weight.size(1)});
    low = at::mm(x2d, lora.down.to(x.scalar_type()).t());
    if (lora.scale != 1) low.mul_(lora.scale);
    y = bias.defined() ? at::addmm(bias, x2d, weight.t()) : at::mm(x2d, weight.t());
    y.addmm_(low, lora.up.to(x.scalar_type()).t());
    auto shape = x.sizes().vec();
    shape.back() = weight.size(0);
    y = y.view(shape);
  }
  record<LoraLinearBackward>(
      y,
      [&](LoraLinearBackward& node) {
        node.x = x2d;
        node.low = low;
        node.weight = weight;
        node.lora = lora;
      },
      x, lora.down, lora.up);
  return y;
}

}  // namespace lorashard
