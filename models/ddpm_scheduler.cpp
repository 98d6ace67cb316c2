#include "models/ddpm_scheduler.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

/// Glide's cosine schedule (betas_for_alpha_bar): in double, rounded once, as diffusers does in Python floats.
at::Tensor squaredcos_cap_v2_betas(int64_t steps) {
  const auto alpha_bar = [](double t) { return std::pow(std::cos((t + 0.008) / 1.008 * std::numbers::pi / 2), 2.0); };
  std::vector<float> betas;
  betas.reserve(steps);
  for (int64_t i = 0; i < steps; ++i) {
    const double t1 = static_cast<double>(i) / steps, t2 = static_cast<double>(i + 1) / steps;
    betas.push_back(static_cast<float>(std::min(1 - alpha_bar(t2) / alpha_bar(t1), 0.999)));
  }
  return at::tensor(betas);
}

at::Tensor make_betas(const DDPMSchedulerConfig& config) {
  const int64_t steps = config.num_train_timesteps;
  if (config.beta_schedule == "linear") return at::linspace(config.beta_start, config.beta_end, steps, at::kFloat);
  if (config.beta_schedule == "scaled_linear") {
    return at::pow(at::linspace(std::sqrt(config.beta_start), std::sqrt(config.beta_end), steps, at::kFloat), 2);
  }
  if (config.beta_schedule == "squaredcos_cap_v2") return squaredcos_cap_v2_betas(steps);
  throw Error(ErrorKind::bad_data,
              fmt::format("noise scheduler: beta_schedule '{}' is unknown; expected linear, scaled_linear or "
                          "squaredcos_cap_v2",
                          config.beta_schedule),
              "set beta_schedule in scheduler/scheduler_config.json of the base model");
}

/// rescale_zero_terminal_snr (arXiv 2305.08891, algorithm 1): shifts and scales sqrt(acp) so that the last one is 0.
at::Tensor rescale_zero_terminal_snr(const at::Tensor& betas) {
  const at::Tensor root = at::cumprod(1.0 - betas, 0).sqrt();
  const at::Tensor first = root[0].clone(), last = root[-1].clone();
  const at::Tensor alphas_bar = at::pow((root - last) * (first / (first - last)), 2);
  const at::Tensor alphas = alphas_bar.slice(0, 1) / alphas_bar.slice(0, 0, -1);
  return 1 - at::cat({alphas_bar.slice(0, 0, 1), alphas});
}

/// sqrt(acp_t) and sqrt(1 - acp_t), shaped to multiply `like`. diffusers rounds acp to the sample's type before the
/// roots.
std::pair<at::Tensor, at::Tensor> signal_and_noise(const at::Tensor& alphas_cumprod, const at::Tensor& timesteps,
                                                   const at::Tensor& like) {
  std::vector<int64_t> shape(like.dim(), 1);
  shape[0] = -1;
  const at::Tensor acp = alphas_cumprod.to(like.options()).index_select(0, timesteps.to(like.device())).view(shape);
  return {acp.sqrt(), (1 - acp).sqrt()};
}

}  // namespace

DDPMScheduler::DDPMScheduler(const DDPMSchedulerConfig& config) : config_(config) {
  if (config.num_train_timesteps < 1) {
    throw Error(ErrorKind::bad_data, fmt::format("noise scheduler: num_train_timesteps is {}; expected at least 1",
                                                 config.num_train_timesteps));
  }
  if (config.prediction_type != "epsilon" && config.prediction_type != "v_prediction" &&
      config.prediction_type != "sample") {
    throw Error(
        ErrorKind::bad_data,
        fmt::format("noise scheduler: prediction_type '{}' is unknown; expected epsilon, v_prediction or sample",
                    config.prediction_type),
        "set prediction_type in the recipe's [model] table");
  }
  if (config.edm) return;  // alphas_cumprod_ stays undefined: an error wherever it is used
  at::Tensor betas = make_betas(config);
  if (config.rescale_betas_zero_snr) betas = rescale_zero_terminal_snr(betas);
  alphas_cumprod_ = at::cumprod(1.0 - betas, 0);
}

void DDPMScheduler::to(at::Device device) {
  if (alphas_cumprod_.defined()) alphas_cumprod_ = alphas_cumprod_.to(device);
}

at::Tensor DDPMScheduler::add_noise(const at::Tensor& latents, const at::Tensor& noise,
                                    const at::Tensor& timesteps) const {
  const auto [signal, sigma] = signal_and_noise(alphas_cumprod_, timesteps, latents);
  return signal * latents + sigma * noise;
}

at::Tensor DDPMScheduler::get_velocity(const at::Tensor& latents, const at::Tensor& noise,
                                       const at::Tensor& timesteps) const {
  const auto [signal, sigma] = signal_and_noise(alphas_cumprod_, timesteps, latents);
  return signal * noise - sigma * latents;
}

at::Tensor DDPMScheduler::target(const at::Tensor& latents, const at::Tensor& noise,
                                 const at::Tensor& timesteps) const {
  if (config_.prediction_type == "epsilon") return noise;
  if (config_.prediction_type == "v_prediction") return get_velocity(latents, noise, timesteps);
  return latents;
}

at::Tensor DDPMScheduler::sigmas(const at::Tensor& timesteps) const {
  at::Tensor acp = alphas_cumprod_.to(timesteps.device()).index_select(0, timesteps);
  if (config_.rescale_betas_zero_snr) acp = at::where(timesteps == config_.num_train_timesteps - 1, 0x1p-24, acp);
  return ((1.0 - acp) / acp).sqrt();
}

at::Tensor DDPMScheduler::compute_snr(const at::Tensor& timesteps) const {
  const at::Tensor acp = alphas_cumprod_.to(timesteps.device()).index_select(0, timesteps);
  return at::pow(acp.sqrt() / (1.0 - acp).sqrt(), 2);
}

}  // namespace lorashard
