// A keyed permutation of [0, n): the order of rows in an epoch, computed at any position without a table.
// A Feistel network on the next even power of two with Philox as round function, cycle-walked into range.
#pragma once
#include <cstdint>

#include "dist/philox.h"

namespace lorashard {

class Permutation {
 public:
  /// `n` >= 1 rows; pure function of (seed, epoch, n, purpose): the class pack and the rows that are held out have their own.
  Permutation(uint64_t seed, uint64_t epoch, int64_t n, Purpose purpose = Purpose::permutation);
  /// Image of `i`, 0 <= i < n.
  int64_t operator()(int64_t i) const;

 private:
  uint64_t seed_, epoch_;
  int64_t n_;
  int half_bits_;
  Purpose purpose_;
};

}  // namespace lorashard
