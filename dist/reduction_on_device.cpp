// The reduction by tensor operations alone: the host decides nothing and reads nothing, so a GPU is never waited for.
#include <ATen/ATen.h>

#include <cmath>

#include "dist/error.h"
#include "dist/reduction.h"
#include "dist/reduction_flag.h"

namespace lorashard {

void GradientReduction::add(const at::Tensor& flat_gradient, const at::Tensor& loss, double loss_scale) {
  if (!device().is_cpu()) return add_without_waiting(flat_gradient, loss, loss_scale);
  add(flat_gradient, loss.item<double>(), loss_scale);
}

void GradientReduction::add_without_waiting(const at::Tensor& flat_gradient, const at::Tensor& loss,
                                            double loss_scale) {
  LORASHARD_CHECK(flat_gradient.scalar_type() == at::kFloat && flat_gradient.is_contiguous() &&
                      flat_gradient.numel() == num_parameters_ && num_parameters_ > 0 &&
                      flat_gradient.device() == sum_.device(),
                  "a gradient of {} elements, expected a flat fp32 one of {} on {}", flat_gradient.numel(),
                  num_parameters_, sum_.device().str());
  LORASHARD_CHECK(is_power_of_two(loss_scale), "loss scale {} is not a power of two", loss_scale);
  const at::NoGradGuard no_grad;
  const at::Tensor largest = flat_gradient.abs().max().to(at::kDouble) * (scale() / loss_scale);  // NaN where one is
  const at::Tensor scaled_loss = loss.to(at::kDouble) * scale();
  const at::Tensor loss_fits = scaled_loss.abs().le(limit());
  const at::Tensor violation =
      largest.le(limit()).logical_not().to(at::kLong) + loss_fits.logical_not().to(at::kLong) * kBadLoss;
  const at::Tensor fits = violation.eq(0);
  const at::Tensor loss_part = at::where(loss_fits, scaled_loss, at::zeros({}, scaled_loss.options()));
  const at::Tensor flag = violation.to(sum_.scalar_type());
  at::Tensor gradients = sum_.narrow(0, 0, num_parameters_), loss_sum = sum_.select(0, num_parameters_),
             flag_sum = sum_.select(0, num_parameters_ + 1);
  if (deterministic_) {
    // at::round is to the nearest even, as llrint() is.
    const at::Tensor q = (flat_gradient.to(at::kDouble) * (scale() / loss_scale)).round_();
    gradients.add_(at::where(fits, q, at::zeros({}, q.options())).to(at::kLong));
    loss_sum.add_(loss_part.round().to(at::kLong));
  } else {
    const at::Tensor unscaled = flat_gradient * static_cast<float>(1.0 / loss_scale);
    gradients.add_(at::where(fits, unscaled, at::zeros({}, unscaled.options())));
    loss_sum.add_(loss_part.to(at::kFloat));
  }
  flag_sum.add_(flag);
}

GradientReduction::DeviceResult GradientReduction::reduce_without_waiting(Communicator& communicator) {
  const at::NoGradGuard no_grad;
  communicator.all_reduce_sum(sum_);
  mean_.copy_(sum_.narrow(0, 0, num_parameters_).to(at::kDouble).div_(divisor_));
  const at::Tensor flag = sum_.select(0, num_parameters_ + 1).to(at::kDouble);
  const at::Tensor mean_loss = sum_.select(0, num_parameters_).to(at::kDouble).div_(divisor_);
  const at::Tensor all_finite = at::isfinite(mean_.abs().max()).logical_and(at::isfinite(mean_loss));
  DeviceResult result;
  result.mean_gradient = mean_;
  result.found_inf = flag.ne(0).logical_or(all_finite.logical_not()).to(at::kFloat);
  const at::Tensor unknown = at::full({}, std::nan(""), mean_loss.options());
  result.mean_loss = at::where(flag.ge(static_cast<double>(kBadLoss)), unknown, mean_loss);
  sum_.zero_();
  return result;
}

}  // namespace lorashard
