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
  /// `num_parameters` elements on `device`; `num_micro_batches` is M of an optimizer step over all ranks.
  GradientReduction(int64_t num_parameters, int64_t num_micro_batches, bool deterministic,
                    at::Device device = at::kCPU);

  /// Adds one micro-batch: its flat fp32 gradient (`loss_scale`, a power of two, is divided out of it, exactly) and its
  /// loss. A non-finite or out-of-range value (|q| > 2^62 / M) marks the step as skipped; no gradient is added then.
  void add(const at::Tensor& flat_gradient, double loss, double loss_scale = 1.0);
  /// The same by either way, as the gradient's device wants it. `loss` is a scalar on that device.
  void add(const at::Tensor& flat_gradient, const at::Tensor& loss, double loss_scale = 1.0);
  /// The same sum by tensor operations alone, on any device and to the same bits: a GPU is not waited for. `loss` is a
  /// scalar on the gradient's device.
  void add_without_waiting(const at::Tensor& flat_gradient, const at::Tensor& loss, double loss_scale = 1.0);

  struct Result {
    at::Tensor mean_gradient;  ///< [num_parameters] fp32, the mean over M micro-batches; a buffer reused each step
    double mean_loss = 0;      ///< same bits for any rank count when deterministic; NaN when a loss was out of range
    bool skipped = false;      ///< some micro-batch on some rank was non-finite: the update must not happen
  };
  /// One all-reduce over the ranks, then the mean; clears the sums for the next step. Collective.
  Result reduce(Communicator& communicator);

  struct DeviceResult {
    at::Tensor mean_gradient;  ///< as above; NaN or anything where the step is skipped
    at::Tensor mean_loss;      ///< fp64 []
    at::Tensor found_inf;      ///< fp32 []: 1 when the step is skipped, else 0 (at::_fused_adamw_ takes it so)
  };
  /// The same by tensor operations alone. Collective.
  DeviceResult reduce_without_waiting(Communicator& communicator);

  at::Device device() const { return sum_.device(); }

 private:
  double scale() const;  ///< what a gradient or a loss is multiplied by before it is added
  double limit() const;  ///< the largest magnitude of such a product

  int64_t num_parameters_, num_micro_batches_;
  bool deterministic_;
  at::Tensor sum_;   // [num_parameters + 2]: gradient, loss, flag; int64 or fp32
  at::Tensor mean_;  // [num_parameters] fp32
  at::Tensor divisor_;  // fp64 []: the scale times M, on the device (by a host number CUDA would multiply with 1 / it)
};

}  // namespace lorashard
