// How a base's pictures are sampled: its scheduler_config.json, of whatever scheduler class wrote it, as diffusers'
// X.from_config(pipeline.scheduler.config) understands it: what the file says, else the default of the class X.
// Read by models/text_to_image.cpp and handed to models/sampling_scheduler.h.
#pragma once
#include <cstdint>
#include <filesystem>
#include <limits>
#include <optional>
#include <string>

#include "models/model_config.h"

namespace lorashard {

/// Members without a value take the default of the scheduler that is made, where the classes differ.
struct SamplingConfig {
  DDPMSchedulerConfig schedule;                 ///< betas, prediction_type, rescale_betas_zero_snr
  std::optional<std::string> timestep_spacing;  ///< "leading", "linspace" or "trailing"
  std::optional<int64_t> steps_offset;
  std::optional<bool> set_alpha_to_one;  ///< DDIM, PNDM
  std::optional<bool> clip_sample;       ///< DDIM
  double clip_sample_range = 1;          ///< DDIM
  bool skip_prk_steps = false;           ///< PNDM
  bool use_karras_sigmas = false;        ///< DPM-Solver++, Euler
  std::string final_sigmas_type = "zero";
  std::string algorithm_type = "dpmsolver++";  ///< this and the following: DPM-Solver++
  std::string solver_type = "midpoint";        ///< or "heun"
  int64_t solver_order = 2;
  bool lower_order_final = true, euler_at_final = false;
  double lambda_min_clipped = -std::numeric_limits<double>::infinity();
  /// Settings the file turns on that no scheduler here has, as "use_beta_sigmas = true"; each refuses those it
  /// concerns.
  std::string thresholding, other_sigmas, interpolation_type, timestep_type, variance_type;
};

/// Throws Error(usage) when the file isn't there, Error(bad_data) naming the key that is wrong. Defined in
/// model_config.cpp, beside the other readers of config files.
SamplingConfig read_sampling_config(const std::filesystem::path& scheduler_config_json);

}  // namespace lorashard
