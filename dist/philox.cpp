#include "dist/philox.h"

#include <cmath>
#include <numbers>

#include "dist/error.h"

namespace lorashard {
namespace {

uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

}  // namespace

std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t{0xD2511F53} * counter[0];
    const uint64_t product1 = uint64_t{0xCD9E8D57} * counter[2];
    counter = {high(product1) ^ counter[1] ^ key[0], low(product1), high(product0) ^ counter[3] ^ key[1],
               low(product0)};
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return counter;
}

std::array<uint32_t, 4> philox(uint64_t seed, uint64_t slot, Purpose purpose, uint32_t block) {
  return philox4x32_10({low(slot), high(slot), static_cast<uint32_t>(purpose), block}, {low(seed), high(seed)});
}

double uniform(uint64_t seed, uint64_t slot, Purpose purpose) { return uniform_at(seed, slot, purpose, 0); }

double uniform_at(uint64_t seed, uint64_t slot, Purpose purpose, uint32_t block) {
  const auto words = philox(seed, slot, purpose, block);
  const uint64_t bits = uint64_t{words[1]} << 32 | words[0];
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

int64_t uniform_int(uint64_t seed, uint64_t slot, Purpose purpose, int64_t n) {
  // Up to 2^53 the product never rounds up to n: 1 - uniform >= 2^-53 is at least half a unit in the last place of n.
  LORASHARD_CHECK(n >= 1 && n <= int64_t{1} << 53, "a uniform integer below {}", n);
  return static_cast<int64_t>(uniform(seed, slot, purpose) * static_cast<double>(n));
}

void fill_normal(std::span<float> out, uint64_t seed, uint64_t slot, Purpose purpose) {
  LORASHARD_CHECK(out.size() <= uint64_t{1} << 34, "{} normals of one slot and purpose", out.size());
  for (size_t start = 0; start < out.size(); start += 4) {
    const auto words = philox(seed, slot, purpose, static_cast<uint32_t>(start / 4));
    float normals[4];
    for (int pair = 0; pair < 4; pair += 2) {
      // (word + 1/2) / 2^32 is exact in double and never 0, so the logarithm is finite.
      const double radius = std::sqrt(-2.0 * std::log((static_cast<double>(words[pair]) + 0.5) * 0x1p-32));
      const double angle = 2.0 * std::numbers::pi * (static_cast<double>(words[pair + 1]) * 0x1p-32);
      normals[pair] = static_cast<float>(radius * std::cos(angle));
      normals[pair + 1] = static_cast<float>(radius * std::sin(angle));
    }
    for (size_t i = start; i < out.size() && i < start + 4; ++i) out[i] = normals[i - start];
  }
}

}  // namespace lorashard
