// Which timesteps a run trains on, and how often each: all alike, a range, or with a bias (generate_timestep_weights of
// diffusers' examples/text_to_image/train_text_to_image_sdxl.py). Called by the loader. Thread-safe after construction.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dist/philox.h"

namespace lorashard {

struct TimestepOptions {
  int64_t num_train_timesteps = 1000;
  int64_t min_timestep = 0, max_timestep = 0;  ///< [min, max); max 0: num_train_timesteps
  std::string bias_strategy = "none";          ///< or "earlier", "later", "range"
  double bias_multiplier = 1;                  ///< above 0: weight of the timesteps that the strategy names
  int64_t bias_begin = 0, bias_end = 1000;     ///< of "range": [begin, end)
  double bias_portion = 0.25;                  ///< of "earlier" and "later": how much of the timesteps
};

class TimestepDistribution {
 public:
  /// Throws Error(usage) naming the recipe key when a range isn't within num_train_timesteps.
  explicit TimestepDistribution(const TimestepOptions& options);

  /// The timestep of `slot`: one uniform of `purpose` through the inverse of the cumulative weights.
  int64_t draw(uint64_t seed, uint64_t slot, Purpose purpose = Purpose::timestep) const;

 private:
  int64_t begin_, count_;           // [begin, begin + count) are drawn
  std::vector<double> cumulative_;  // of the weights of these; empty when all are alike
};

}  // namespace lorashard
