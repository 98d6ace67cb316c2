// Euler's method over noise levels, without churn: diffusers' EulerDiscreteScheduler (schedulers/
// scheduling_euler_discrete.py; arXiv 2206.00364, algorithm 2 with S_churn = 0). Made by make_sampling_scheduler().
#pragma once
#include "models/sampling_scheduler.h"

namespace lorashard {

class EulerDiscreteScheduler : public SamplingScheduler {
 public:
  /// Throws Error(usage) or Error(bad_data) as make_sampling_scheduler() says.
  EulerDiscreteScheduler(const SamplingConfig& config, int64_t num_inference_steps);
  double init_noise_sigma() const override;
  at::Tensor scale_model_input(const at::Tensor& sample) const override;

 protected:
  at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) override;

 private:
  std::string prediction_type_, timestep_spacing_;
  std::vector<float> sigmas_;  // one more than there are steps
};

}  // namespace lorashard
