#include "models/dpmsolver_multistep_scheduler.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "models/edm_schedule.h"
#include "models/sampling_timesteps.h"

namespace lorashard {
DPMSolverMultistepScheduler::DPMSolverMultistepScheduler(const SamplingConfig& config, int64_t num_inference_steps)
    : config_(config) {
  for (const std::string& setting : {config.thresholding, config.other_sigmas, config.variance_type})
    refuse_setting(setting, "dpmsolver++");
  if (config.algorithm_type != "dpmsolver++")
    refuse_setting("algorithm_type \"" + config.algorithm_type + "\"", "dpmsolver++");
  if (config.schedule.edm) {
    set_edm_levels(num_inference_steps);
    return;
  }
  const std::vector<float> alphas_cumprod = sampling_alphas_cumprod(config, TerminalSnr::finite);
  const std::vector<float> levels = train_sigmas(alphas_cumprod);
  std::vector<double> timesteps, sigmas;
  if (config.use_karras_sigmas) {
    sigmas = karras_sigmas(levels.back(), levels.front(), num_inference_steps);
    for (const double sigma : sigmas) timesteps.push_back(sigma_to_timestep(sigma, levels));
    if (config.schedule.beta_schedule != "squaredcos_cap_v2") round_all(timesteps);
    for (double& timestep : timesteps) timestep = std::trunc(timestep);
  } else {
    timesteps = choose_timesteps(num_inference_steps, alphas_cumprod);
    for (const double timestep : timesteps) sigmas.push_back(interpolate(timestep, levels));
  }
  sigmas_.assign(sigmas.begin(), sigmas.end());
  sigmas_.push_back(config.final_sigmas_type == "sigma_min" ? levels.front() : 0.0F);
  set_timesteps(timesteps, config.schedule.num_train_timesteps);
}

void DPMSolverMultistepScheduler::set_edm_levels(int64_t num_inference_steps) {
  const EDMSchedulerConfig& edm = *config_.schedule.edm;
  sigmas_ = edm_sigmas(edm, num_inference_steps - 1);
  set_timesteps(edm_timesteps(sigmas_));
  sigmas_.push_back(config_.final_sigmas_type == "sigma_min" ? static_cast<float>(edm.sigma_min) : 0.0F);
}

double DPMSolverMultistepScheduler::init_noise_sigma() const {
  return config_.schedule.edm ? edm_init_noise_sigma(*config_.schedule.edm) : 1;
}

at::Tensor DPMSolverMultistepScheduler::scale_model_input(const at::Tensor& sample) const {
  if (!config_.schedule.edm) return sample;
  return edm_precondition_inputs(*config_.schedule.edm, sample, at::tensor(sigmas_[step()], sample.options()));
}

DPMSolverMultistepScheduler::Level DPMSolverMultistepScheduler::level(size_t i) const {
  // diffusers computes these as fp32 scalars. EDM's pictures keep their size under the noise.
  const float alpha = config_.schedule.edm ? 1.0F : 1 / std::sqrt(sigmas_[i] * sigmas_[i] + 1), sigma = sigmas_[i] * alpha;
  return {alpha, sigma, std::log(alpha) - std::log(sigma)};
}

std::vector<double> DPMSolverMultistepScheduler::choose_timesteps(int64_t num_inference_steps,
                                                                  const std::vector<float>& alphas_cumprod) const {
  // Timesteps noisier than lambda_min_clipped are left out.
  auto last_timestep = static_cast<int64_t>(alphas_cumprod.size());
  const auto lambda = [&](int64_t timestep) {
    const float alpha = alphas_cumprod[static_cast<size_t>(timestep)];
    return std::log(std::sqrt(alpha)) - std::log(std::sqrt(1 - alpha));
  };
  while (last_timestep > 0 && lambda(last_timestep - 1) < config_.lambda_min_clipped) --last_timestep;
  const std::string spacing = config_.timestep_spacing.value_or("linspace");
  if (spacing == "trailing") {
    const double step =
        static_cast<double>(config_.schedule.num_train_timesteps) / static_cast<double>(num_inference_steps);
    std::vector<double> timesteps = arange_to_zero(static_cast<double>(last_timestep), step);
    round_all(timesteps);
    for (double& timestep : timesteps) timestep -= 1;
    return timesteps;
  }
  // One more than asked for, and the cleanest left out.
  std::vector<double> timesteps =
      spaced_timesteps(spacing, last_timestep, num_inference_steps + 1, config_.steps_offset.value_or(0));
  round_all(timesteps);
  timesteps.pop_back();
  return timesteps;
}

at::Tensor DPMSolverMultistepScheduler::pred_original_sample(const at::Tensor& model_output,
                                                             const at::Tensor& sample) const {
  const DDPMSchedulerConfig& schedule = config_.schedule;
  if (schedule.edm) {
    return edm_precondition_outputs(*schedule.edm, schedule.prediction_type, sample, model_output,
                                    at::tensor(sigmas_[step()], sample.options()));
  }
  const Level now = level(step());
  if (schedule.prediction_type == "epsilon") return (sample - now.sigma * model_output) / now.alpha;
  if (schedule.prediction_type == "v_prediction") return now.alpha * sample - now.sigma * model_output;
  return model_output;
}

int64_t DPMSolverMultistepScheduler::order() const {
  const size_t steps = timesteps().size();
  const bool few = config_.lower_order_final && steps < 15;
  int64_t order = std::min<int64_t>(config_.solver_order, static_cast<int64_t>(step()) + 1);
  if (step() + 2 == steps && few) order = std::min<int64_t>(order, 2);
  const bool is_last = step() + 1 == steps;
  if (is_last && (few || config_.euler_at_final || config_.final_sigmas_type == "zero")) order = 1;
  return order;
}

at::Tensor DPMSolverMultistepScheduler::next_sample(const at::Tensor& model_output, const at::Tensor& sample) {
  if (model_outputs_.size() == static_cast<size_t>(config_.solver_order)) model_outputs_.erase(model_outputs_.begin());
  model_outputs_.push_back(pred_original_sample(model_output, sample));
  const int64_t now = order();
  return now == 1 ? first_order(sample) : now == 2 ? second_order(sample) : third_order(sample);
}

at::Tensor DPMSolverMultistepScheduler::first_order(const at::Tensor& sample) const {
  const Level t = level(step() + 1), s0 = level(step());
  const float h = t.lambda - s0.lambda;
  return t.sigma / s0.sigma * sample - t.alpha * (std::exp(-h) - 1) * model_outputs_.back();
}

at::Tensor DPMSolverMultistepScheduler::second_order(const at::Tensor& sample) const {
  const Level t = level(step() + 1), s0 = level(step()), s1 = level(step() - 1);
  const at::Tensor &m0 = model_outputs_.back(), &m1 = model_outputs_[model_outputs_.size() - 2];
  const float h = t.lambda - s0.lambda, r0 = (s0.lambda - s1.lambda) / h;
  const float change = t.alpha * (std::exp(-h) - 1);
  const at::Tensor d1 = 1 / r0 * (m0 - m1);
  const at::Tensor first = t.sigma / s0.sigma * sample - change * m0;
  if (config_.solver_type == "heun") return first + t.alpha * ((std::exp(-h) - 1) / h + 1) * d1;
  return first - 0.5F * change * d1;
}

at::Tensor DPMSolverMultistepScheduler::third_order(const at::Tensor& sample) const {
  const Level t = level(step() + 1), s0 = level(step()), s1 = level(step() - 1), s2 = level(step() - 2);
  const at::Tensor &m0 = model_outputs_[2], &m1 = model_outputs_[1], &m2 = model_outputs_[0];
  const float h = t.lambda - s0.lambda, r0 = (s0.lambda - s1.lambda) / h, r1 = (s1.lambda - s2.lambda) / h;
  const at::Tensor d1_0 = 1 / r0 * (m0 - m1), d1_1 = 1 / r1 * (m1 - m2);
  const at::Tensor d1 = d1_0 + r0 / (r0 + r1) * (d1_0 - d1_1);
  const at::Tensor d2 = 1 / (r0 + r1) * (d1_0 - d1_1);
  const float change = std::exp(-h) - 1;
  return t.sigma / s0.sigma * sample - t.alpha * change * m0 + t.alpha * (change / h + 1) * d1 -
         t.alpha * ((change + h) / (h * h) - 0.5F) * d2;
}

}  // namespace lorashard
