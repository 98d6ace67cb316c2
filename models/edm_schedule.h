// EDM's formulation (arXiv 2206.00364, table 1) of bases that were trained in it (Playground v2.5): noise levels, and what
// is put before and behind the UNet. As diffusers' EDMEulerScheduler has them (schedulers/scheduling_edm_euler.py). Used by
// trainer/diffusion_loss and, for pictures, models/edm_euler_scheduler and dpmsolver_multistep_scheduler. Everything is fp32.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "models/model_config.h"

namespace lorashard {

/// `count` + 1 noise levels from sigma_max down to sigma_min, Karras' or evenly spaced in their logarithm.
std::vector<float> edm_sigmas(const EDMSchedulerConfig& config, int64_t count);

/// What the UNet is told at each of these levels, and what the first sample's normals are times.
std::vector<float> edm_timesteps(const std::vector<float>& sigmas);
double edm_init_noise_sigma(const EDMSchedulerConfig& config);

/// The three factors of a noise level. A tensor of levels must broadcast against `sample`.
at::Tensor edm_precondition_inputs(const EDMSchedulerConfig& config, const at::Tensor& sample, const at::Tensor& sigmas);
/// What the UNet is told instead of a timestep: log(sigma) / 4.
at::Tensor edm_precondition_noise(const at::Tensor& sigmas);
/// The latents that `model_output`, a prediction of "epsilon" or "v_prediction" for `sample`, stands for.
at::Tensor edm_precondition_outputs(const EDMSchedulerConfig& config, const std::string& prediction_type, const at::Tensor& sample,
                                    const at::Tensor& model_output, const at::Tensor& sigmas);

/// The noise of each training timestep. As with any schedule the last is the noisiest: timestep t is index
/// num_train_timesteps - 1 - t of EDMEulerScheduler.sigmas. Thread-safe after construction, but for to().
class EDMSchedule {
 public:
  /// Requires: config.edm.
  explicit EDMSchedule(const DDPMSchedulerConfig& config);
  at::Tensor sigmas(const at::Tensor& timesteps) const;  ///< int64 [B] -> fp32 [B]
  void to(at::Device device) { sigmas_ = sigmas_.to(device); }

 private:
  at::Tensor sigmas_;  // [num_train_timesteps], by timestep
};

}  // namespace lorashard
