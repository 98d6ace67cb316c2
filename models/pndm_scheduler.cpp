#include "models/pndm_scheduler.h"

#include <ATen/TensorOperators.h>
#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "dist/error.h"
#include "models/sampling_timesteps.h"

namespace lorashard {
namespace {

constexpr size_t kOrder = 4;

/// The calls of the first kOrder - 1 steps, four each, from `timesteps` in ascending order.
std::vector<int64_t> runge_kutta_timesteps(const std::vector<double>& timesteps, int64_t half_stride) {
  std::vector<int64_t> halves;  // t, t + half, of the last kOrder timesteps
  for (auto timestep = timesteps.end() - kOrder; timestep != timesteps.end(); ++timestep) {
    halves.push_back(static_cast<int64_t>(*timestep));
    halves.push_back(static_cast<int64_t>(*timestep) + half_stride);
  }
  halves.pop_back();
  std::vector<int64_t> calls;
  for (const int64_t timestep : halves) calls.insert(calls.end(), 2, timestep);
  calls.erase(calls.begin());
  calls.pop_back();
  std::reverse(calls.begin(), calls.end());
  return calls;
}

}  // namespace

PNDMScheduler::PNDMScheduler(const SamplingConfig& config, int64_t num_inference_steps)
    : is_v_prediction_(config.schedule.prediction_type == "v_prediction"),
      stride_(config.schedule.num_train_timesteps / num_inference_steps),
      alphas_cumprod_(sampling_alphas_cumprod(config, TerminalSnr::ignored)) {
  if (config.schedule.prediction_type == "sample")
    throw Error(ErrorKind::bad_data, "sampling: scheduler 'pndm' has no prediction_type 'sample'",
                "take dpmsolver++, ddim or euler");
  final_alpha_cumprod_ = config.set_alpha_to_one.value_or(false) ? 1.0F : alphas_cumprod_.front();
  auto ascending = spaced_timesteps(config.timestep_spacing.value_or("leading"), config.schedule.num_train_timesteps,
                                    num_inference_steps, config.steps_offset.value_or(0));
  round_all(ascending);
  std::reverse(ascending.begin(), ascending.end());
  std::vector<double> calls;
  if (config.skip_prk_steps) {
    // The second call is made twice: once to look ahead, once to go there with the mean of both.
    calls.assign(ascending.begin(), ascending.end() - 1);
    if (ascending.size() > 1) calls.push_back(ascending[ascending.size() - 2]);
    calls.push_back(ascending.back());
    std::reverse(calls.begin(), calls.end());
  } else {
    if (ascending.size() < kOrder) {
      throw Error(ErrorKind::usage,
                  fmt::format("sampling: scheduler 'pndm' with Runge-Kutta steps needs at least {} steps, found {}",
                              kOrder, ascending.size()));
    }
    prk_timesteps_ = runge_kutta_timesteps(ascending, stride_ / 2);
    calls.assign(prk_timesteps_.begin(), prk_timesteps_.end());
    for (size_t i = ascending.size() - (kOrder - 1); i-- > 0;) calls.push_back(ascending[i]);
  }
  set_timesteps(calls, config.schedule.num_train_timesteps);
}

at::Tensor PNDMScheduler::next_sample(const at::Tensor& model_output, const at::Tensor& sample) {
  return step() < prk_timesteps_.size() ? step_prk(model_output, sample) : step_plms(model_output, sample);
}

at::Tensor PNDMScheduler::step_prk(const at::Tensor& model_output, const at::Tensor& sample) {
  const size_t call = step();
  const int64_t to_prev = call % 2 == 1 ? 0 : stride_ / 2;
  const int64_t prev_timestep = prk_timesteps_[call] - to_prev, timestep = prk_timesteps_[call / 4 * 4];
  at::Tensor direction = model_output;
  if (call % 4 == 0) {
    cur_model_output_ = model_output * (1.0 / 6);
    ets_.push_back(model_output);
    cur_sample_ = sample;
  } else if (call % 4 == 3) {
    direction = cur_model_output_ + model_output * (1.0 / 6);
  } else {
    cur_model_output_ = cur_model_output_ + model_output * (1.0 / 3);
  }
  return transfer(cur_sample_, timestep, prev_timestep, direction);
}

at::Tensor PNDMScheduler::step_plms(at::Tensor model_output, at::Tensor sample) {
  auto timestep = static_cast<int64_t>(timesteps()[step()]);
  int64_t prev_timestep = timestep - stride_;
  if (step() == 1) {
    prev_timestep = timestep;
    timestep += stride_;
  } else {
    if (ets_.size() == kOrder) ets_.erase(ets_.begin());
    ets_.push_back(model_output);
  }
  const size_t known = ets_.size();
  const auto et = [&](size_t back) { return ets_[known - back]; };
  if (step() == 0) {
    cur_sample_ = sample;
  } else if (step() == 1) {
    model_output = (model_output + et(1)) / 2;
    sample = cur_sample_;
  } else if (known == 2) {
    model_output = (3 * et(1) - et(2)) / 2;
  } else if (known == 3) {
    model_output = (23 * et(1) - 16 * et(2) + 5 * et(3)) / 12;
  } else {
    model_output = (55 * et(1) - 59 * et(2) + 37 * et(3) - 9 * et(4)) * (1.0 / 24);
  }
  return transfer(sample, timestep, prev_timestep, model_output);
}

at::Tensor PNDMScheduler::transfer(const at::Tensor& sample, int64_t timestep, int64_t prev_timestep,
                                   at::Tensor model_output) const {
  const float alpha = alphas_cumprod_[static_cast<size_t>(timestep)];
  const float alpha_prev =
      prev_timestep >= 0 ? alphas_cumprod_[static_cast<size_t>(prev_timestep)] : final_alpha_cumprod_;
  const float beta = 1 - alpha, beta_prev = 1 - alpha_prev;
  if (is_v_prediction_) model_output = std::sqrt(alpha) * model_output + std::sqrt(beta) * sample;
  const float denominator = alpha * std::sqrt(beta_prev) + std::sqrt(alpha * beta * alpha_prev);
  return std::sqrt(alpha_prev / alpha) * sample - (alpha_prev - alpha) * model_output / denominator;
}

}  // namespace lorashard
