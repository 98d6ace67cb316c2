#include "dist/reduction.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "dist/error.h"
#include "dist/reduction_flag.h"

namespace lorashard {
namespace {

constexpr int64_t kMaxMicroBatches = int64_t{1} << 30;

/// The largest |g|, or infinity or NaN where there is one: absolute floats are ordered as their bits are.
float largest_magnitude(const float* g, int64_t n) {
  int32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<int32_t>(g[i]) & 0x7fffffff);
  return std::bit_cast<float>(largest);
}

/// sum[i] += round_to_nearest_even(g[i] * factor), all of them below 2^51. Added to 1.5 * 2^52 a double has its integer
/// in its low bits; unlike llrint this is two instructions that vectorise everywhere, and the same bits.
void add_fixed_point_small(int64_t* sum, const float* g, int64_t n, double factor) {
  constexpr double kShift = 0x1.8p52;
  constexpr int64_t kShiftBits = std::bit_cast<int64_t>(kShift);
  for (int64_t i = 0; i < n; ++i) {
    sum[i] += std::bit_cast<int64_t>(static_cast<double>(g[i]) * factor + kShift) - kShiftBits;
  }
}

void add_fixed_point(int64_t* sum, const float* g, int64_t n, double factor) {
  for (int64_t i = 0; i < n; ++i) sum[i] += std::llrint(static_cast<double>(g[i]) * factor);
}

}  // namespace

GradientReduction::GradientReduction(int64_t num_parameters, int64_t num_micro_batches, bool deterministic,
                                     at::Device device)
    : num_parameters_(num_parameters), num_micro_batches_(num_micro_batches), deterministic_(deterministic) {
  LORASHARD_CHECK(num_parameters >= 0, "{} parameters", num_parameters);
  LORASHARD_CHECK(num_micro_batches >= 1 && num_micro_batches < kMaxMicroBatches, "{} micro-batches",
                  num_micro_batches);
  const auto options = at::TensorOptions().device(device);
  sum_ = at::zeros({num_parameters + 2}, options.dtype(deterministic ? at::kLong : at::kFloat));
  mean_ = at::zeros({num_parameters}, options.dtype(at::kFloat));
  divisor_ = at::full({}, scale() * static_cast<double>(num_micro_batches), options.dtype(at::kDouble));
}

double GradientReduction::scale() const { return deterministic_ ? std::ldexp(1.0, kFixedPointBits) : 1.0; }

double GradientReduction::limit() const {
  return deterministic_ ? std::ldexp(1.0, 62) / static_cast<double>(num_micro_batches_)
                        : static_cast<double>(std::numeric_limits<float>::max());
}

void GradientReduction::add(const at::Tensor& flat_gradient, double loss, double loss_scale) {
  LORASHARD_CHECK(flat_gradient.scalar_type() == at::kFloat && flat_gradient.is_contiguous() &&
                      flat_gradient.numel() == num_parameters_ && flat_gradient.device().is_cpu(),
                  "a gradient of {} elements, expected a flat fp32 one of {}", flat_gradient.numel(), num_parameters_);
  LORASHARD_CHECK(is_power_of_two(loss_scale), "loss scale {} is not a power of two", loss_scale);
  const float* g = flat_gradient.const_data_ptr<float>();
  // A product by a power of two is exact: the one rounding is the one to an integer (or the fp32 sum).
  const double factor = scale() / loss_scale;
  const double largest = static_cast<double>(largest_magnitude(g, num_parameters_)) * factor;
  // Written so that a NaN fails the test.
  const bool gradient_fits = largest <= limit(), loss_fits = std::abs(loss * scale()) <= limit();
  const int64_t violation = (gradient_fits ? 0 : 1) + (loss_fits ? 0 : kBadLoss);
  if (deterministic_) {
    int64_t* sum = sum_.mutable_data_ptr<int64_t>();
    if (loss_fits) sum[num_parameters_] += std::llrint(loss * scale());
    sum[num_parameters_ + 1] += violation;
    if (violation != 0) return;
    if (largest < 0x1p51) {
      add_fixed_point_small(sum, g, num_parameters_, factor);
    } else {
      add_fixed_point(sum, g, num_parameters_, factor);
    }
  } else {
    float* sum = sum_.mutable_data_ptr<float>();
    if (loss_fits) sum[num_parameters_] += static_cast<float>(loss);
    sum[num_parameters_ + 1] += static_cast<float>(violation);
    if (violation != 0) return;
    const float unscale = static_cast<float>(factor);
    for (int64_t i = 0; i < num_parameters_; ++i) sum[i] += g[i] * unscale;
  }
}

GradientReduction::Result GradientReduction::reduce(Communicator& communicator) {
  communicator.all_reduce_sum(sum_);
  const double micro_batches = static_cast<double>(num_micro_batches_);
  float* mean = mean_.mutable_data_ptr<float>();
  Result result;
  result.mean_gradient = mean_;
  double flag = 0;
  if (deterministic_) {
    const int64_t* sum = sum_.const_data_ptr<int64_t>();
    const double divisor = std::ldexp(micro_batches, kFixedPointBits);
    for (int64_t i = 0; i < num_parameters_; ++i) mean[i] = static_cast<float>(static_cast<double>(sum[i]) / divisor);
    result.mean_loss = static_cast<double>(sum[num_parameters_]) / divisor;
    flag = static_cast<double>(sum[num_parameters_ + 1]);
  } else {
    const float* sum = sum_.const_data_ptr<float>();
    for (int64_t i = 0; i < num_parameters_; ++i) mean[i] = static_cast<float>(sum[i] / micro_batches);
    result.mean_loss = sum[num_parameters_] / micro_batches;
    flag = sum[num_parameters_ + 1];
  }
  // A sum of finite fp32 values may still overflow; every rank has the same sum, so all of them see it.
  result.skipped =
      flag != 0 || !std::isfinite(largest_magnitude(mean, num_parameters_)) || !std::isfinite(result.mean_loss);
  if (flag >= static_cast<double>(kBadLoss)) result.mean_loss = std::numeric_limits<double>::quiet_NaN();
  sum_.zero_();
  return result;
}

}  // namespace lorashard
