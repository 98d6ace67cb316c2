// DDIM without noise (eta = 0): diffusers' DDIMScheduler (schedulers/scheduling_ddim.py; arXiv 2010.02502, formula 12).
// Made by make_sampling_scheduler().
#pragma once
#include "models/sampling_scheduler.h"

namespace lorashard {

class DDIMScheduler : public SamplingScheduler {
 public:
  /// Throws Error(usage) or Error(bad_data) as make_sampling_scheduler() says.
  DDIMScheduler(const SamplingConfig& config, int64_t num_inference_steps);

 protected:
  at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) override;

 private:
  SamplingConfig config_;
  int64_t stride_;  // training timesteps from one step to the next
  std::vector<float> alphas_cumprod_;
  float final_alpha_cumprod_;
};

}  // namespace lorashard
