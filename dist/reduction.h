// The sum of gradients over the micro-batches of an optimizer step and over the ranks, whatever shares them.
// deterministic: int64 fixed point, q = llrint(g * 2^kScaleBits), so that the sum does not depend on order
// (docs/determinism.md says how the scale was chosen and what it costs). Otherwise float32, fastest.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dist/communicator.h"

namespace lorashard {

inline constexpr int kFixedPointBits = 40;  ///< S: q = llrint(g * 2^S)

class GradientReduction {
 public:
  /// `num_parameters` elements on `device` CPU; `num_micro_batches` is M of an optimizer step over all ranks.
  GradientReduction(int64_t num_parameters, int64_t num_micro_batches, bool deterministic);

  /// Adds one micro-batch: its flat fp32 gradient (`loss_scale`, a power of two, is divided out of it, exactly) and its
  /// loss. A non-finite or out-of-range value (|q| > 2^62 / M) marks the step as skipped; no gradient is added then.
  void add(const at::Tensor& flat_gradient, double loss, double loss_scale = 1.0);

  struct Result {
    at::Tensor mean_gradient;  ///< [num_parameters] fp32, the mean over M micro-batches; a buffer reused each step
    double mean_loss = 0;      ///< same bits for any rank count when deterministic; NaN when a loss was out of range
    bool skipped = false;      ///< some micro-batch on some rank was non-finite: the update must not happen
  };
  /// One all-reduce over the ranks, then the mean; clears the sums for the next step. Collective.
  Result reduce(Communicator& communicator);

 private:
  int64_t num_parameters_, num_micro_batches_;
  bool deterministic_;
  at::Tensor sum_;   // [num_parameters + 2]: gradient, loss, flag; int64 or fp32
  at::Tensor mean_;  // [num_parameters] fp32
};

}  // namespace lorashard
