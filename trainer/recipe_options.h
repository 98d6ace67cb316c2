// The recipe's words as the options of the parts that use them. Called where these parts are built; each function is
// pure.
#pragma once
#include <optional>

#include "data/bucket_manager.h"
#include "data/captions.h"
#include "data/timestep_distribution.h"
#include "models/ddpm_scheduler.h"
#include "trainer/loss_weights.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Absent without enable_bucket.
std::optional<BucketOptions> bucket_options(const Recipe& recipe);
CaptionOptions caption_options(const Recipe& recipe);
TimestepOptions timestep_options(const Recipe& recipe, int64_t num_train_timesteps);

/// Throws Error(usage) naming a key that asks for what the base's prediction type has no formula for.
LossOptions loss_options(const Recipe& recipe, const DDPMSchedulerConfig& scheduler);

}  // namespace lorashard
