// From noise to latents in a few steps of the UNet: what the four samplers (DPM-Solver++ multistep, DDIM, Euler, PNDM)
// have in common, and the one place that makes them by name. Used by models/text_to_image.cpp.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "models/sampling_config.h"

namespace lorashard {

/// One picture's way through the noise levels. Its state is where it is and what the UNet said before: make one for
/// each picture. Not thread-safe. Steps are done in fp32, on whatever device the tensors are.
class SamplingScheduler {
 public:
  virtual ~SamplingScheduler() = default;

  /// What the UNet is told at each of its calls, in order; fractions with Euler. PNDM makes more calls than steps.
  const std::vector<float>& timesteps() const { return timesteps_; }
  /// The first sample is standard normal noise times this.
  virtual double init_noise_sigma() const { return 1; }
  /// What the UNet is shown of `sample` at this step.
  virtual at::Tensor scale_model_input(const at::Tensor& sample) const { return sample; }
  /// The next sample, from what the UNet predicted at timesteps()[step()]; then step() is one more.
  at::Tensor step(const at::Tensor& model_output, const at::Tensor& sample);
  size_t step() const { return step_; }

 protected:
  virtual at::Tensor next_sample(const at::Tensor& model_output, const at::Tensor& sample) = 0;
  /// Throws Error(usage) unless every timestep is in [0, num_train_timesteps).
  void set_timesteps(const std::vector<double>& timesteps, int64_t num_train_timesteps);
  /// What the UNet is told where that is no timestep (EDM).
  void set_timesteps(std::vector<float> told) { timesteps_ = std::move(told); }

 private:
  std::vector<float> timesteps_;
  size_t step_ = 0;
};

/// "dpmsolver++", "ddim", "euler", "pndm".
const std::vector<std::string>& sampling_scheduler_names();

/// `karras`: Karras' noise levels, whatever `config` says of them. Throws Error(usage) for an unknown name, a number of
/// steps that isn't possible or a scheduler without such noise levels; Error(bad_data) for a setting of the base's that
/// this scheduler doesn't have here.
std::unique_ptr<SamplingScheduler> make_sampling_scheduler(const std::string& name, const SamplingConfig& config,
                                                           int64_t num_inference_steps, bool karras = false);

// For the schedulers themselves.
enum class TerminalSnr { ignored, exact, finite };
/// The cumulated alphas as fp32 numbers. Where the config has rescale_betas_zero_snr the last is 0 (`exact`), or 2^-24,
/// so that the first noise level is finite (`finite`); `ignored`: as without.
std::vector<float> sampling_alphas_cumprod(const SamplingConfig& config, TerminalSnr terminal_snr);
/// Throws Error(bad_data) unless `setting` is empty.
void refuse_setting(const std::string& setting, const std::string& scheduler);

}  // namespace lorashard
