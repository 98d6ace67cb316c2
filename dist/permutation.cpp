#include "dist/permutation.h"

#include <bit>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr int kRounds = 8;
constexpr int kMaxHalfBits = 28;  // the round number takes the upper four bits of the block word

int half_bits_for(int64_t n) { return (std::bit_width(static_cast<uint64_t>(n - 1)) + 1) / 2; }

}  // namespace

Permutation::Permutation(uint64_t seed, uint64_t slot, int64_t n, Purpose purpose)
    : seed_(seed), slot_(slot), n_(n), half_bits_(n < 1 ? 0 : half_bits_for(n)), purpose_(purpose) {
  LORASHARD_CHECK(n >= 1 && half_bits_ <= kMaxHalfBits, "a permutation of {} rows", n);
}

int64_t Permutation::operator()(int64_t i) const {
  LORASHARD_CHECK(i >= 0 && i < n_, "row {} of {}", i, n_);
  const uint32_t mask = (uint32_t{1} << half_bits_) - 1;
  uint64_t x = static_cast<uint64_t>(i);
  do {
    uint32_t left = static_cast<uint32_t>(x >> half_bits_), right = static_cast<uint32_t>(x) & mask;
    for (uint32_t round = 0; round < kRounds; ++round) {
      const uint32_t block = round << kMaxHalfBits | right;
      const uint32_t mixed = left ^ (philox(seed_, slot_, purpose_, block)[0] & mask);
      left = right;
      right = mixed;
    }
    x = uint64_t{left} << half_bits_ | right;
  } while (x >= static_cast<uint64_t>(n_));  // walks the cycle of i until it is back in range
  return static_cast<int64_t>(x);
}

}  // namespace lorashard
