// The noise schedule of training: diffusers' DDPMScheduler (schedulers/scheduling_ddpm.py). Thread-safe after construction, but for to().
#pragma once
#include <ATen/core/Tensor.h>

#include "models/model_config.h"

namespace lorashard {

class DDPMScheduler {
 public:
  /// Throws Error(bad_data) for a beta_schedule or prediction_type it doesn't know. With config.edm only config() has a meaning
  /// (models/edm_schedule has that noise).
  explicit DDPMScheduler(const DDPMSchedulerConfig& config);

  /// sqrt(acp_t) * latents + sqrt(1 - acp_t) * noise. `timesteps` int64 [B].
  at::Tensor add_noise(const at::Tensor& latents, const at::Tensor& noise, const at::Tensor& timesteps) const;
  /// v = sqrt(acp_t) * noise - sqrt(1 - acp_t) * latents.
  at::Tensor get_velocity(const at::Tensor& latents, const at::Tensor& noise, const at::Tensor& timesteps) const;
  /// What the model is to predict: noise (epsilon), velocity (v_prediction) or latents (sample).
  at::Tensor target(const at::Tensor& latents, const at::Tensor& noise, const at::Tensor& timesteps) const;
  /// sqrt((1 - acp_t) / acp_t), fp32 [B]: the noise of EulerDiscreteScheduler (schedulers/scheduling_euler_discrete.py),
  /// which takes 2^-24 for an acp of 0.
  at::Tensor sigmas(const at::Tensor& timesteps) const;
  /// acp_t / (1 - acp_t), fp32 [B] (diffusers training_utils.compute_snr).
  at::Tensor compute_snr(const at::Tensor& timesteps) const;

  /// Puts the tables on `device`, where latents and timesteps will be: no step then copies them.
  void to(at::Device device);

  const at::Tensor& alphas_cumprod() const { return alphas_cumprod_; }  ///< fp32 [num_train_timesteps]
  const DDPMSchedulerConfig& config() const { return config_; }

 private:
  DDPMSchedulerConfig config_;
  at::Tensor alphas_cumprod_;
};

}  // namespace lorashard
