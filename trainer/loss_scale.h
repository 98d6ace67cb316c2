// The dynamic loss scale of fp16 (Micikevicius et al., Mixed Precision Training; torch.amp.GradScaler has the same
// rule): the loss is multiplied by it before backward so that small gradients don't vanish in fp16, and the reduction
// divides it out again. Every rank updates its own from what the reduction tells all of them, so all have the same.
#pragma once
#include <cstdint>

#include "trainer/named_state.h"

namespace lorashard {

class LossScale {
 public:
  /// Not `dynamic` (fp32, bf16): 1 for ever. `initial` is a power of two, so that dividing it out is exact.
  LossScale(bool dynamic, double initial, int64_t growth_interval);

  bool dynamic() const { return dynamic_; }
  double value() const { return value_; }
  /// After each step: halved after a skipped one, doubled after `growth_interval` others in a row.
  void update(bool skipped);
  /// Below 1: the gradients overflow fp16 unscaled, so no scale will help.
  bool exhausted() const { return value_ < 1; }

  int64_t clean_steps() const { return clean_steps_; }  ///< since it changed last
  /// Goes on from what a checkpoint has of both. Throws Error(bad_data) for values that none can have. Requires:
  /// dynamic().
  void restore(double value, int64_t clean_steps);

  /// What a checkpoint has: "value" and "clean_steps".
  NamedState state() const { return {.tensors = {}, .scalars = {{"value", value_}, {"clean_steps", clean_steps_}}}; }
  void load(const NamedState& saved);

 private:
  bool dynamic_;
  double value_;
  int64_t growth_interval_;
  int64_t clean_steps_ = 0;
};

}  // namespace lorashard
