// Noise with coarser and coarser noise on top of it (pyramid_noise_like of kohya's sd-scripts, library/custom_train_functions.py;
// its author's report: wandb.ai/johnowhitaker/multires_noise). Called by the loader. Thread-safe.
#pragma once
#include <cstdint>
#include <span>

namespace lorashard {

struct MultiresNoiseOptions {
  int64_t iterations = 0;  ///< levels at most; 0: the noise stays as it is
  double discount = 0.3;   ///< level i is times discount^i
};

/// `noise` is one image's [channels, height, width]: the levels are added to it, and the sum is divided by its standard deviation. Sizes
/// and normals of the levels are drawn for (seed, slot), as docs/determinism.md specifies; computed in double, rounded once.
void add_multires_noise(std::span<float> noise, int64_t channels, int64_t height, int64_t width, const MultiresNoiseOptions& options,
                        uint64_t seed, uint64_t slot, bool class_image);

}  // namespace lorashard
