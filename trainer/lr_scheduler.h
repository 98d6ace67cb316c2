// The learning rate of an update, as a pure function of its number: diffusers' optimization.py get_scheduler, and of transformers'
// optimization.py the two that sd-scripts offers besides.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lorashard {

struct LrSchedulerOptions {
  std::string name = "constant";  ///< constant, constant_with_warmup, linear, cosine, cosine_with_restarts, polynomial,
                                  ///< cosine_with_min_lr, warmup_stable_decay
  int64_t warmup_steps = 0, max_train_steps = 0, num_cycles = 1;
  double power = 1.0;
  double min_lr_ratio = 0;  ///< of the last two: where they end
  int64_t decay_steps = 0;  ///< of warmup_stable_decay: before the end
};

/// Learning rate of update `update` (from 0), `base` being the recipe's learning_rate. Bit for bit what
/// LambdaLR over the reference's lambda gives in double. Throws Error(usage) for an unknown name.
double learning_rate(const LrSchedulerOptions& options, double base, int64_t update);

/// The same for parameter groups with learning rates of their own, `bases`, times the one factor that `base` gives: LambdaLR
/// with one lambda over an optimizer whose default is `base`.
std::vector<double> learning_rates(const LrSchedulerOptions& options, double base, const std::vector<double>& bases,
                                   int64_t update);

}  // namespace lorashard
