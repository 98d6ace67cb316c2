// The optimizer that a recipe names, and the learning rates it is stepped with. Called by the trainer.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "trainer/optimizer.h"

namespace lorashard {

/// `parameters`: the adapter's flat tensor, updated in place by each step. Throws Error(usage) for an unknown name.
std::unique_ptr<Optimizer> make_optimizer(const Recipe::Optimizer& options, const at::Tensor& parameters,
                                          std::vector<ParameterGroup> groups);

/// Of each group, for the update after `updates`: the schedule's, or Adafactor's own. `recipe` is resolved.
std::vector<double> learning_rates_of(const Recipe& recipe, const std::vector<ParameterGroup>& groups, int64_t updates);

/// What a user should hear of once, at the start.
std::vector<std::string> optimizer_warnings(const Recipe::Optimizer& options);

}  // namespace lorashard
