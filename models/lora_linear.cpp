#include "models/lora_linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace lorashard {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

at::Tensor frozen_linear(const at::Tensor& x2d, const at::Tensor& weight, const at::Tensor& bias) {
  return bias.defined() ? at::addmm(bias, x2d, weight.t()) : at::mm(x2d, weight.t());
}

/// Adds `a` b to the .grad of `parameter`, or returns it where there is none to add to.
at::Tensor accumulate(const at::Tensor& parameter, const at::Tensor& a, const at::Tensor& b) {
  at::Tensor& grad = parameter.mutable_grad();
  if (!grad.defined()) return at::mm(a, b).to(parameter.scalar_type());
  if (a.scalar_type() == grad.scalar_type())
    grad.addmm_(a, b);
  else
    grad.add_(at::mm(a, b));
  return {};
}

struct LoraLinear : torch::autograd::Function<LoraLinear> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                            const at::Tensor& down, const at::Tensor& up, double scale) {
    const at::Tensor x2d = x.reshape({-1, weight.size(1)});
    const at::Tensor down_x = down.to(x.scalar_type()), up_x = up.to(x.scalar_type());
    at::Tensor low = at::mm(x2d, down_x.t());
    if (scale != 1) low.mul_(scale);
    at::Tensor y = frozen_linear(x2d, weight, bias);
    y.addmm_(low, up_x.t());
    ctx->save_for_backward({x2d, low, weight, down, up});
    ctx->saved_data["scale"] = scale;
    ctx->saved_data["x_needs_grad"] = x.requires_grad();
    ctx->set_materialize_grads(false);
    auto shape = x.sizes().vec();
    shape.back() = weight.size(0);
    return y.view(shape);
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    if (!grads[0].defined()) return {{}, {}, {}, {}, {}, {}};
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &x2d = saved[0], &low = saved[1], &weight = saved[2], &down = saved[3], &up = saved[4];
    const double scale = ctx->saved_data["scale"].toDouble();
    const at::Tensor g = grads[0].reshape({-1, weight.size(0)});
    at::Tensor g_low = at::mm(g, up.to(g.scalar_type()));
    if (scale != 1) g_low.mul_(scale);
    at::Tensor dx;
    if (ctx->saved_data["x_needs_grad"].toBool()) {
      dx = at::mm(g, weight);
      dx.addmm_(g_low, down.to(g.scalar_type()));
      auto shape = grads[0].sizes().vec();
      shape.back() = weight.size(1);
      dx = dx.view(shape);
    }
    return {dx, {}, {}, accumulate(down, g_low.t(), x2d), accumulate(up, g.t(), low), {}};
  }
};

}  // namespace

at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora) {
  return LoraLinear::apply(x, weight, bias, lora.down, lora.up, lora.scale);
}

}  // namespace lorashard
