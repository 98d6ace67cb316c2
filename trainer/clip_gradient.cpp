#include "trainer/clip_gradient.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dist/error.h"
#include "trainer/fixed_order_sum.h"

namespace lorashard {

double clip_gradient(at::Tensor& gradient, double max_norm) {
  LORASHARD_CHECK(gradient.defined() && gradient.dim() == 1, "clip_gradient: expected a flat gradient");
  const at::NoGradGuard no_grad;
  const double norm = std::sqrt(sum_of_squares(gradient));
  const double scale = max_norm / (norm + 1e-6);
  if (max_norm > 0 && scale < 1.0) gradient.mul_(float(scale));
  return norm;
}

at::Tensor clip_gradient_without_waiting(at::Tensor& gradient, double max_norm) {
  LORASHARD_CHECK(gradient.defined() && gradient.dim() == 1, "clip_gradient_without_waiting: expected a flat gradient");
  const at::NoGradGuard no_grad;
  const at::Tensor norm = gradient.to(at::kDouble).square_().sum().sqrt_();
  if (max_norm <= 0) return norm;
  const at::Tensor scale = at::full({}, max_norm, norm.options()).div_(norm + 1e-6).clamp_max_(1.0);
  gradient.mul_(scale.to(at::kFloat));
  return norm;
}

}  // namespace lorashard
