// A keyed permutation of [0, n): the order of rows in an epoch, computed at any position without a table.
// A Feistel network on the next even power of two with Philox as round function, cycle-walked into range.
#pragma once
#include <cstdint>

namespace lorashard {

class Permutation {
 public:
  /// `n` >= 1 rows; pure function of (seed, epoch, n). `class_images` picks the class pack's own permutation.
  Permutation(uint64_t seed, uint64_t epoch, int64_t n, bool class_images = false);
  /// Image of `i`, 0 <= i < n.
  int64_t operator()(int64_t i) const;

 private:
  uint64_t seed_, epoch_;
  int64_t n_;
  int half_bits_;
  bool class_images_;
};

}  // namespace lorashard
