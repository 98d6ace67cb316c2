// A keyed permutation of [0, n): the order of rows (or of micro-batches) in an epoch, computed at any position without a table.
// A Feistel network on the next even power of two with Philox as round function, cycle-walked into range.
#pragma once
#include <cstdint>

#include "dist/philox.h"

namespace lorashard {

class Permutation {
 public:
  /// `n` >= 1 rows; pure function of (seed, slot, n, purpose). The order of an epoch's rows has the epoch as its slot.
  Permutation(uint64_t seed, uint64_t slot, int64_t n, Purpose purpose = Purpose::permutation);
  /// Image of `i`, 0 <= i < n.
  int64_t operator()(int64_t i) const;

 private:
  uint64_t seed_, slot_;
  int64_t n_;
  int half_bits_;
  Purpose purpose_;
};

}  // namespace lorashard
