// What a run that goes on from a checkpoint takes from it, and what it refuses to go on with.
#pragma once
#include <string>

#include "trainer/checkpoint.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Before resolve_recipe(): where the recipe leaves total_batch_size to be derived from the rank count, takes what the first start
/// derived, so that a resume on other ranks keeps it, and with it length and scaled learning rate.
void adopt_resolved_values(Recipe& recipe, const TrainingState& saved);

/// After resolve_recipe(): throws Error(usage) naming the first identity key (with both values), or the pack or the base, that is
/// not the checkpoint's.
void require_same_run(const Recipe& recipe, const std::string& pack_hash, const std::string& base_hash,
                      const TrainingState& saved, const std::string& checkpoint);

/// With deterministic = true: throws Error(usage) where the checkpoint's steps were computed on other hardware than `arithmetic` says,
/// as describe_arithmetic_of() gives it; a warning with resume_on_other_hardware = true. Another build of the program is a warning
/// always. What the checkpoint doesn't say isn't held against it.
void require_same_hardware(const Recipe& recipe, const std::string& arithmetic, const TrainingState& saved, const std::string& checkpoint);

}  // namespace lorashard
