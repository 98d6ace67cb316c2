// Euler's method over EDM's noise levels: diffusers' EDMEulerScheduler without churn (schedulers/scheduling_edm_euler.py). What
// "euler" is for a base of EDM's formulation. Made by make_sampling_scheduler().
#pragma once
#include "models/sampling_scheduler.h"

namespace lorashard {

class EDMEulerScheduler : public SamplingScheduler {
 public:
  /// Requires: config.schedule.edm.
  EDMEulerScheduler(const SamplingConfig& config, int64_t num_inference_steps);
  double init_noise_sigma() const override;
  at::Tensor scale_model_input(const at::Tensor& sample) const override;

 protected:
  at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) override;

 private:
  std::string prediction_type_;
  EDMSchedulerConfig edm_;
  std::vector<float> sigmas_;  // one more than there are steps
};

}  // namespace lorashard
