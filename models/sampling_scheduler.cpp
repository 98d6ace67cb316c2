#include "models/sampling_scheduler.h"

#include <fmt/ranges.h>

#include "dist/error.h"
#include "models/ddim_scheduler.h"
#include "models/ddpm_scheduler.h"
#include "models/dpmsolver_multistep_scheduler.h"
#include "models/edm_euler_scheduler.h"
#include "models/euler_discrete_scheduler.h"
#include "models/pndm_scheduler.h"

namespace lorashard {

at::Tensor SamplingScheduler::step(const at::Tensor& model_output, const at::Tensor& sample) {
  LORASHARD_CHECK(step_ < timesteps_.size(), "step {} of a sampler of {} steps", step_, timesteps_.size());
  at::Tensor next = next_sample(model_output.to(at::kFloat), sample.to(at::kFloat));
  ++step_;
  return next;
}

void SamplingScheduler::set_timesteps(const std::vector<double>& timesteps, int64_t num_train_timesteps) {
  timesteps_.assign(timesteps.begin(), timesteps.end());
  for (const float timestep : timesteps_) {
    if (timestep >= 0 && timestep < static_cast<float>(num_train_timesteps)) continue;
    throw Error(ErrorKind::usage,
                fmt::format("sampling: {} steps would need timestep {}, and the base has only {}", timesteps_.size(),
                            timestep, num_train_timesteps),
                "take fewer steps");
  }
}

std::unique_ptr<SamplingScheduler> make_sampling_scheduler(const std::string& name, const SamplingConfig& config,
                                                           int64_t num_inference_steps, bool karras) {
  if (num_inference_steps < 1 || num_inference_steps > config.schedule.num_train_timesteps) {
    throw Error(ErrorKind::usage, fmt::format("sampling: num_inference_steps is {}; expected 1 to {}, the timesteps of "
                                              "the base",
                                              num_inference_steps, config.schedule.num_train_timesteps));
  }
  SamplingConfig wanted = config;
  wanted.use_karras_sigmas |= karras;
  if (wanted.schedule.edm) {
    if (name == "ddim" || name == "pndm") {
      throw Error(ErrorKind::usage, fmt::format("sampling: scheduler '{}' can't sample a base of EDM's formulation", name),
                  "take euler or dpmsolver++");
    }
    if (karras) wanted.schedule.edm->sigma_schedule = "karras";
    if (name == "euler") return std::make_unique<EDMEulerScheduler>(wanted, num_inference_steps);
  }
  if (name == "dpmsolver++") return std::make_unique<DPMSolverMultistepScheduler>(wanted, num_inference_steps);
  if (name == "euler") return std::make_unique<EulerDiscreteScheduler>(wanted, num_inference_steps);
  if (name != "ddim" && name != "pndm") {
    throw Error(ErrorKind::usage, fmt::format("sampling: scheduler '{}' is unknown; expected one of {}", name,
                                              fmt::join(sampling_scheduler_names(), ", ")));
  }
  if (karras) {
    throw Error(ErrorKind::usage, fmt::format("sampling: scheduler '{}' has no Karras noise levels", name),
                "take dpmsolver++ or euler");
  }
  if (name == "ddim") return std::make_unique<DDIMScheduler>(wanted, num_inference_steps);
  return std::make_unique<PNDMScheduler>(wanted, num_inference_steps);
}

std::vector<float> sampling_alphas_cumprod(const SamplingConfig& config, TerminalSnr terminal_snr) {
  DDPMSchedulerConfig schedule = config.schedule;
  schedule.rescale_betas_zero_snr &= terminal_snr != TerminalSnr::ignored;
  const at::Tensor alphas_cumprod = DDPMScheduler(schedule).alphas_cumprod().contiguous();
  const float* first = alphas_cumprod.const_data_ptr<float>();
  std::vector<float> values(first, first + alphas_cumprod.numel());
  if (schedule.rescale_betas_zero_snr && terminal_snr == TerminalSnr::finite) values.back() = 0x1p-24F;
  return values;
}

void refuse_setting(const std::string& setting, const std::string& scheduler) {
  if (setting.empty()) return;
  throw Error(ErrorKind::bad_data,
              fmt::format("sampling: the base's scheduler_config.json has {}, which '{}' doesn't have here", setting,
                          scheduler),
              "take another scheduler, or remove the setting");
}

}  // namespace lorashard
