// Tensors and numbers by name: what the parts of a training (optimizer, EMA, loss scale) give to a checkpoint and take
// back from it. A part's names are put under "part/" in the whole.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <variant>

#include "models/safetensors.h"

namespace lorashard {

/// A number with all its bits: a checkpoint gives back the same type and value.
using NamedScalars = std::map<std::string, std::variant<int64_t, double>>;

struct NamedState {
  StateDict tensors;
  NamedScalars scalars;

  /// Adds all of `other` as "part/name". Its tensors are shared, not copied.
  void add(const std::string& part, const NamedState& other);
  /// What was added as `part`, under its own names; empty when nothing was.
  NamedState part(const std::string& part) const;
  bool has(const std::string& part) const;
};

/// For a part that is restored: throws Error(bad_data) naming what `saved` lacks, has beyond `expected`, or has with
/// another type or shape. `what` is the part in words. Values of `expected` aren't looked at.
void require_same_names(const NamedState& saved, const NamedState& expected, const std::string& what);

/// Copies every tensor of `from` into the tensor of that name in `into`, which must have them all. Any devices.
void copy_tensors(const StateDict& from, StateDict& into);

}  // namespace lorashard
