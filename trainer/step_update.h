// The end of an optimizer step: one message over the ranks, clipping, and the update that all of them make alike.
// Called by train_step().
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

#include "dist/communicator.h"
#include "dist/reduction.h"
#include "trainer/optimizer.h"

namespace lorashard {

struct StepUpdate {
  double mean_loss = 0;
  double grad_norm = 0;  ///< before clipping; NaN when skipped
  bool skipped = false;  ///< some micro-batch on some rank was not finite: nothing was updated
};

/// Sums over the ranks, clips the mean gradient to `max_grad_norm` and updates the parameters;
/// a skipped step changes nothing. `look` sees the mean gradient before it is clipped. On a GPU all of it is enqueued
/// before the host looks at the outcome once. Collective; the same on every rank.
StepUpdate reduce_and_update(GradientReduction& reduction, Communicator& communicator, Optimizer& optimizer,
                             const std::vector<double>& learning_rates, double max_grad_norm,
                             const std::function<void(const at::Tensor&)>& look);

}  // namespace lorashard
