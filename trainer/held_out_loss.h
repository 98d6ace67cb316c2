// The loss on pictures that are held out of training (validation.validation_split): at fixed timesteps and with fixed noise, so that the
// losses of two steps, or of two runs, differ by the adapter alone. docs/determinism.md specifies it. Called by the Trainer.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "data/data_loader.h"
#include "data/pack.h"
#include "dist/communicator.h"
#include "models/stable_diffusion.h"
#include "trainer/recipe.h"
#include "trainer/text_cache.h"

namespace lorashard {

/// Rows of the pack that are held out, sorted: the part of them that validation_split says, rounded down, by a permutation of the
/// seed's. Throws Error(usage) where that is none of them.
std::vector<int64_t> held_out_rows(const Recipe& recipe, const Pack& pack);

struct HeldOutLossOptions {
  bool deterministic = true, do_edm_style_training = false;
  const TextCache* texts = nullptr;  ///< embeddings that are there already; null: none
};

/// Mean over `rows` of the mean squared error of the prediction at kHeldOutTimesteps timesteps. The ranks share the rows, one each at a
/// time; the mean is taken in the order of the rows, so it is the same on any number of ranks. Nothing on every rank when a request to
/// stop ended it. `loader`: the training's. Collective.
std::optional<double> held_out_loss(Communicator& communicator, const StableDiffusion& base, const Pack& pack,
                                    const DataLoaderOptions& loader, const std::vector<int64_t>& rows, const HeldOutLossOptions& options);

constexpr int64_t kHeldOutTimesteps = 5;

/// In the middle of each fifth of the timesteps that are trained on.
std::vector<int64_t> held_out_timesteps(const TimestepOptions& options);

}  // namespace lorashard
