#include "models/lora_linear.h"

#include <ATen/ATen.h>

#include "models/aligned_weight.h"
#include "models/autograd_node.h"
#include "models/low_rank.h"

namespace lorashard {
namespace {

using torch::autograd::variable_list;

/// `rows` [N, last] back in the shape `like` has but for the last dimension.
at::Tensor reshaped(const at::Tensor& rows, const at::Tensor& like) {
  if (like.dim() == 2) return rows;
  auto shape = like.sizes().vec();
  shape.back() = rows.size(1);
  return rows.view(shape);
}

at::Tensor as_rows(const at::Tensor& x) { return x.dim() == 2 ? x : x.reshape({-1, x.size(-1)}); }

/// x W^T + b + residual.
at::Tensor product(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const at::Tensor& residual) {
  const at::Tensor transposed = aligned_weight(weight, x.size(0)).t();
  if (!residual.defined()) return bias.defined() ? at::addmm(bias, x, transposed) : at::mm(x, transposed);
  const at::Tensor rows = as_rows(residual);
  return bias.defined() ? (rows + bias).addmm_(x, transposed) : at::addmm(rows, x, transposed);
}

struct FrozenLinearBackward : torch::autograd::Node {
  at::Tensor weight;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {{}, {}};
    const BelowAutograd guard;
    at::Tensor dx;
    if (task_should_compute_output(0)) dx = reshaped(at::mm(as_rows(grads[0]), weight), grads[0]);
    return {dx, grads[0]};
  }
  std::string name() const override { return "FrozenLinearBackward"; }
};

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
    if (!grads[0].defined()) return {{}, {}, {}, {}};
    const BelowAutograd guard;
    const at::Tensor g = as_rows(grads[0]);
    const bool x_wants_grad = task_should_compute_output(0);
    at::Tensor dx;
    if (x_wants_grad) dx = at::mm(g, weight);
    if (low_rank::fits(x, g, lora)) {
      low_rank::backward(x, low, g.contiguous(), lora, dx);
      return {x_wants_grad ? reshaped(dx, grads[0]) : dx, {}, {}, grads[0]};
    }
    at::Tensor g_low = at::mm(g, lora.up.to(g.scalar_type()));
    if (lora.scale != 1) g_low.mul_(lora.scale);
    if (x_wants_grad) dx = reshaped(dx.addmm_(g_low, lora.down.to(g.scalar_type())), grads[0]);
    return {dx, accumulate(lora.down, g_low.t(), x), accumulate(lora.up, g.t(), low), grads[0]};
  }

  void release_variables() override { x = low = weight = at::Tensor(); }
  std::string name() const override { return "LoraLinearBackward"; }
};

}  // namespace

at::Tensor frozen_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                         const at::Tensor& residual) {
  at::Tensor y;
  {
    const BelowAutograd guard;
    y = reshaped(product(as_rows(x), weight, bias, residual), x);
  }
  record<FrozenLinearBackward>(
      y, [&](FrozenLinearBackward& node) { node.weight = weight; }, x, residual);
  return y;
}

at::Tensor lora_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora,
                       const at::Tensor& residual) {
  at::Tensor x_rows, low, y;
  {
    const BelowAutograd guard;
    x_rows = as_rows(x);
    const at::Tensor rows = product(x_rows, weight, bias, residual);
    if (low_rank::fits(x_rows, rows, lora)) {
      x_rows = x_rows.contiguous();
      low = low_rank::forward(x_rows, lora, rows);
    } else {
      low = at::mm(x_rows, lora.down.to(x.scalar_type()).t());
      if (lora.scale != 1) low.mul_(lora.scale);
      rows.addmm_(low, lora.up.to(x.scalar_type()).t());
    }
    y = reshaped(rows, x);
  }
  record<LoraLinearBackward>(
      y,
      [&](LoraLinearBackward& node) {
        node.x = x_rows;
        node.low = low;
        node.weight = weight;
        node.lora = lora;
      },
      x, lora.down, lora.up, residual);
  return y;
}

}  // namespace lorashard
