#include "models/euler_discrete_scheduler.h"

#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "models/sampling_timesteps.h"

namespace lorashard {

EulerDiscreteScheduler::EulerDiscreteScheduler(const SamplingConfig& config, int64_t num_inference_steps)
    : prediction_type_(config.schedule.prediction_type),
      timestep_spacing_(config.timestep_spacing.value_or("linspace")) {
  for (const std::string& setting : {config.other_sigmas, config.interpolation_type, config.timestep_type})
    refuse_setting(setting, "euler");
  const std::vector<float> levels = train_sigmas(sampling_alphas_cumprod(config, TerminalSnr::finite));
  std::vector<double> timesteps = spaced_timesteps(timestep_spacing_, config.schedule.num_train_timesteps,
                                                   num_inference_steps, config.steps_offset.value_or(0));
  for (double& timestep : timesteps) timestep = static_cast<float>(timestep);  // diffusers keeps them as fp32
  std::vector<double> sigmas;
  for (const double timestep : timesteps) sigmas.push_back(interpolate(timestep, levels));
  if (config.use_karras_sigmas) {
    sigmas = karras_sigmas(sigmas.front(), sigmas.back(), num_inference_steps);
    timesteps.clear();
    for (const double sigma : sigmas) timesteps.push_back(sigma_to_timestep(sigma, levels));
  }
  sigmas_.assign(sigmas.begin(), sigmas.end());
  sigmas_.push_back(config.final_sigmas_type == "sigma_min" ? levels.front() : 0.0F);
  set_timesteps(timesteps, config.schedule.num_train_timesteps);
}

double EulerDiscreteScheduler::init_noise_sigma() const {
  const float most = *std::max_element(sigmas_.begin(), sigmas_.end());
  return timestep_spacing_ == "leading" ? std::sqrt(most * most + 1) : most;
}

at::Tensor EulerDiscreteScheduler::scale_model_input(const at::Tensor& sample) const {
  const float sigma = sigmas_[step()];
  return sample / std::sqrt(sigma * sigma + 1);
}

at::Tensor EulerDiscreteScheduler::next_sample(const at::Tensor& model_output, const at::Tensor& sample) {
  const float sigma = sigmas_[step()], next_sigma = sigmas_[step() + 1];
  at::Tensor pred_original_sample;
  if (prediction_type_ == "epsilon") {
    pred_original_sample = sample - sigma * model_output;
  } else if (prediction_type_ == "v_prediction") {
    const float variance = sigma * sigma + 1;
    pred_original_sample = model_output * (-sigma / std::sqrt(variance)) + sample / variance;
  } else {
    pred_original_sample = model_output;
  }
  const at::Tensor derivative = (sample - pred_original_sample) / sigma;
  return sample + derivative * (next_sigma - sigma);
}

}  // namespace lorashard
