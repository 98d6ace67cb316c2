// PNDM (Runge-Kutta steps, then linear multistep) and PLMS (multistep alone, skip_prk_steps): diffusers' PNDMScheduler
// (schedulers/scheduling_pndm.py; arXiv 2202.09778, formulas 9, 12, 13). Made by make_sampling_scheduler().
#pragma once
#include "models/sampling_scheduler.h"

namespace lorashard {

class PNDMScheduler : public SamplingScheduler {
 public:
  /// Throws Error(usage) or Error(bad_data) as make_sampling_scheduler() says.
  PNDMScheduler(const SamplingConfig& config, int64_t num_inference_steps);

 protected:
  at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) override;

 private:
  at::Tensor step_prk(const at::Tensor& model_output, const at::Tensor& sample);
  at::Tensor step_plms(at::Tensor model_output, at::Tensor sample);
  /// Formula 9: from `timestep` to `prev_timestep` along `model_output`.
  at::Tensor transfer(const at::Tensor& sample, int64_t timestep, int64_t prev_timestep, at::Tensor model_output) const;

  bool is_v_prediction_;
  int64_t stride_;  // training timesteps from one step to the next
  std::vector<float> alphas_cumprod_;
  float final_alpha_cumprod_;
  std::vector<int64_t> prk_timesteps_;
  std::vector<at::Tensor> ets_;               // the last outputs, at most four
  at::Tensor cur_model_output_, cur_sample_;  // of the Runge-Kutta step under way
};

}  // namespace lorashard
