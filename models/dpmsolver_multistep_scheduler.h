// DPM-Solver++ multistep of orders 1 to 3: diffusers' DPMSolverMultistepScheduler with algorithm_type "dpmsolver++"
// (schedulers/scheduling_dpmsolver_multistep.py; arXiv 2211.01095), and for a base of EDM's formulation
// EDMDPMSolverMultistepScheduler (scheduling_edm_dpmsolver_multistep.py). Made by make_sampling_scheduler().
#pragma once
#include "models/sampling_scheduler.h"

namespace lorashard {

class DPMSolverMultistepScheduler : public SamplingScheduler {
 public:
  /// Throws Error(usage) or Error(bad_data) as make_sampling_scheduler() says.
  DPMSolverMultistepScheduler(const SamplingConfig& config, int64_t num_inference_steps);
  double init_noise_sigma() const override;
  at::Tensor scale_model_input(const at::Tensor& sample) const override;

 protected:
  at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) override;

 private:
  struct Level {
    float alpha, sigma, lambda;
  };
  Level level(size_t i) const;  // of sigmas_[i]
  void set_edm_levels(int64_t num_inference_steps);
  std::vector<double> choose_timesteps(int64_t num_inference_steps, const std::vector<float>& alphas_cumprod) const;
  at::Tensor pred_original_sample(const at::Tensor& model_output, const at::Tensor& sample) const;
  /// Of the step under way: 1, 2 or 3.
  int64_t order() const;
  at::Tensor first_order(const at::Tensor& sample) const;
  at::Tensor second_order(const at::Tensor& sample) const;
  at::Tensor third_order(const at::Tensor& sample) const;

  SamplingConfig config_;
  std::vector<float> sigmas_;              // one more than there are steps
  std::vector<at::Tensor> model_outputs_;  // the last predictions of the picture, at most solver_order, newest last
};

}  // namespace lorashard
