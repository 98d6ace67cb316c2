#include "trainer/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr int64_t kBlock = 8192;  // elements summed by one thread in one fixed order
constexpr int kLanes = 8;         // partial sums side by side, so that the loop vectorises without reordering

double block_sum_of_squares(const float* values, int64_t count) {
  std::array<double, kLanes> lane{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] += double(values[i + j]) * double(values[i + j]);
  }
  for (; i < count; ++i) lane[0] += double(values[i]) * double(values[i]);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

void check_flat(const at::Tensor& tensor, const char* what) {
  LORASHARD_CHECK(tensor.defined() && tensor.dim() == 1 && tensor.is_contiguous() && tensor.scalar_type() == at::kFloat,
                  "{}: expected one contiguous fp32 tensor of one dimension", what);
}

}  // namespace

AdamW::AdamW(at::Tensor parameters, const AdamWOptions& options)
    : parameters_(std::move(parameters)), options_(options) {
  check_flat(parameters_, "AdamW parameters");
  exp_avg = at::zeros_like(parameters_);
  exp_avg_sq = at::zeros_like(parameters_);
  step_ = at::zeros({}, parameters_.options());
}

void AdamW::step(const at::Tensor& gradient, double learning_rate) { update(gradient, learning_rate, std::nullopt); }

void AdamW::step_unless(const at::Tensor& found_inf, const at::Tensor& gradient, double learning_rate) {
  update(gradient, learning_rate, found_inf);
}

void AdamW::update(const at::Tensor& gradient, double learning_rate, const std::optional<at::Tensor>& found_inf) {
  check_flat(gradient, "AdamW gradient");
  LORASHARD_CHECK(gradient.numel() == parameters_.numel(), "AdamW gradient: {} elements for {} parameters",
                  gradient.numel(), parameters_.numel());
  c10::NoGradGuard no_grad;
  // The kernel wants the number of this update, from 1, in a float tensor; `updates` stays the truth, so a resume sets
  // only that.
  step_.fill_(double(++updates));
  at::_fused_adamw_({parameters_}, {gradient}, {exp_avg}, {exp_avg_sq}, /*max_exp_avg_sqs=*/{}, {step_}, learning_rate,
                    options_.beta1, options_.beta2, options_.weight_decay, options_.epsilon, /*amsgrad=*/false,
                    /*maximize=*/false, /*grad_scale=*/{}, found_inf);
}

double clip_gradient(at::Tensor& gradient, double max_norm) {
  check_flat(gradient, "clip_gradient");
  LORASHARD_CHECK(gradient.is_cpu(), "clip_gradient: expected a gradient in host memory");
  c10::NoGradGuard no_grad;
  // Blocks of a fixed size, each summed in one order and all added in one order: the same bits for any number of
  // threads.
  const float* values = gradient.const_data_ptr<float>();
  const int64_t count = gradient.numel();
  std::vector<double> block_sums((count + kBlock - 1) / kBlock);
  at::parallel_for(0, int64_t(block_sums.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      block_sums[b] = block_sum_of_squares(values + b * kBlock, std::min(kBlock, count - b * kBlock));
    }
  });
  double sum = 0;
  for (double block_sum : block_sums) sum += block_sum;
  const double norm = std::sqrt(sum);
  const double scale = max_norm / (norm + 1e-6);
  if (scale < 1.0) gradient.mul_(float(scale));
  return norm;
}

at::Tensor clip_gradient_without_waiting(at::Tensor& gradient, double max_norm) {
  check_flat(gradient, "clip_gradient_without_waiting");
  c10::NoGradGuard no_grad;
  const at::Tensor norm = gradient.to(at::kDouble).square_().sum().sqrt_();
  const at::Tensor scale = at::full({}, max_norm, norm.options()).div_(norm + 1e-6).clamp_max_(1.0);
  gradient.mul_(scale.to(at::kFloat));
  return norm;
}

}  // namespace lorashard
