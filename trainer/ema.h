// The exponential moving average of the adapter: diffusers' EMAModel (training_utils.py). Stepped by the trainer after
// each update; the average is what is exported.
#pragma once
#include <ATen/core/Tensor.h>

#include "trainer/named_state.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Decay of the average at update `update`, from 1 (EMAModel.get_decay): 0 until update_after_step + 1 updates are
/// done.
double ema_decay_at(const Recipe::Ema& options, int64_t update);

class Ema {
 public:
  /// Starts as a copy of `parameters` (fp32 [P]).
  Ema(const at::Tensor& parameters, const Recipe::Ema& options);
  /// average -= (1 - decay) * (average - parameters). `update`: the number of the update just done, from 1. A skipped
  /// step has none.
  void step(const at::Tensor& parameters, int64_t update);

  /// "parameters", fp32 [P]: the average itself, not a copy.
  NamedState state() const;
  /// Throws Error(bad_data) when `saved` is no such state.
  void load(const NamedState& saved);

 private:
  Recipe::Ema options_;
  at::Tensor average_;
};

/// While it lives, `parameters` hold the average of `ema`; then their own values again. Does nothing without `ema`.
class AverageInPlace {
 public:
  AverageInPlace(const Ema* ema, const at::Tensor& parameters);
  ~AverageInPlace();
  AverageInPlace(const AverageInPlace&) = delete;
  AverageInPlace& operator=(const AverageInPlace&) = delete;

 private:
  at::Tensor parameters_, own_;
};

}  // namespace lorashard
