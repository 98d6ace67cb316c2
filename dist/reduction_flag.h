// What both ways of the reduction (dist/reduction.cpp on the host, dist/reduction_on_device.cpp by tensor operations)
// say with the flag element of the buffer.
#pragma once
#include <cmath>
#include <cstdint>

namespace lorashard {

/// The flag element counts micro-batches with a bad gradient; one with a bad loss counts this much. A power of two that
/// fp32 sums keep apart from the counts.
inline constexpr int64_t kBadLoss = int64_t{1} << 31;

inline bool is_power_of_two(double x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5;
}

}  // namespace lorashard
