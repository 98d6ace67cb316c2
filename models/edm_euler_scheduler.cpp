#include "models/edm_euler_scheduler.h"

#include <ATen/ATen.h>

#include "models/edm_schedule.h"

namespace lorashard {

EDMEulerScheduler::EDMEulerScheduler(const SamplingConfig& config, int64_t num_inference_steps)
    : prediction_type_(config.schedule.prediction_type),
      edm_(*config.schedule.edm),
      sigmas_(edm_sigmas(edm_, num_inference_steps - 1)) {
  set_timesteps(edm_timesteps(sigmas_));
  sigmas_.push_back(config.final_sigmas_type == "sigma_min" ? sigmas_.back() : 0.0F);
}

double EDMEulerScheduler::init_noise_sigma() const { return edm_init_noise_sigma(edm_); }

at::Tensor EDMEulerScheduler::scale_model_input(const at::Tensor& sample) const {
  return edm_precondition_inputs(edm_, sample, at::tensor(sigmas_[step()], sample.options()));
}

at::Tensor EDMEulerScheduler::next_sample(const at::Tensor& model_output, const at::Tensor& sample) {
  const float sigma = sigmas_[step()], next_sigma = sigmas_[step() + 1];
  const at::Tensor pred_original_sample =
      edm_precondition_outputs(edm_, prediction_type_, sample, model_output, at::tensor(sigma, sample.options()));
  const at::Tensor derivative = (sample - pred_original_sample) / sigma;
  return sample + derivative * (next_sigma - sigma);
}

}  // namespace lorashard
