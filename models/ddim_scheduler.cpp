#include "models/ddim_scheduler.h"

#include <ATen/ATen.h>

#include <cmath>

#include "models/sampling_timesteps.h"

namespace lorashard {

DDIMScheduler::DDIMScheduler(const SamplingConfig& config, int64_t num_inference_steps)
    : config_(config),
      stride_(config.schedule.num_train_timesteps / num_inference_steps),
      alphas_cumprod_(sampling_alphas_cumprod(config, TerminalSnr::exact)) {
  refuse_setting(config.thresholding, "ddim");
  final_alpha_cumprod_ = config.set_alpha_to_one.value_or(true) ? 1.0F : alphas_cumprod_.front();
  auto timesteps = spaced_timesteps(config.timestep_spacing.value_or("leading"), config.schedule.num_train_timesteps,
                                    num_inference_steps, config.steps_offset.value_or(0));
  round_all(timesteps);
  set_timesteps(timesteps, config.schedule.num_train_timesteps);
}

at::Tensor DDIMScheduler::next_sample(const at::Tensor& model_output, const at::Tensor& sample) {
  const auto timestep = static_cast<int64_t>(timesteps()[step()]);
  const int64_t prev_timestep = timestep - stride_;
  const float alpha = alphas_cumprod_[static_cast<size_t>(timestep)];
  const float alpha_prev =
      prev_timestep >= 0 ? alphas_cumprod_[static_cast<size_t>(prev_timestep)] : final_alpha_cumprod_;
  const float signal = std::sqrt(alpha), noise = std::sqrt(1 - alpha);

  at::Tensor pred_original_sample, pred_epsilon;
  if (config_.schedule.prediction_type == "epsilon") {
    pred_original_sample = (sample - noise * model_output) / signal;
    pred_epsilon = model_output;
  } else if (config_.schedule.prediction_type == "v_prediction") {
    pred_original_sample = signal * sample - noise * model_output;
    pred_epsilon = signal * model_output + noise * sample;
  } else {
    pred_original_sample = model_output;
    pred_epsilon = (sample - signal * model_output) / noise;
  }
  if (config_.clip_sample.value_or(true))
    pred_original_sample = pred_original_sample.clamp(-config_.clip_sample_range, config_.clip_sample_range);
  return std::sqrt(alpha_prev) * pred_original_sample + std::sqrt(1 - alpha_prev) * pred_epsilon;
}

}  // namespace lorashard
