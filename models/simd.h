// Sixteen floats at once, in GCC's vector types: one source, compiled for each level of x86-64 and chosen at run time
// (LORASHARD_SIMD before a function). Sums are lane by lane in a fixed order and nothing is contracted to FMA, so every
// level gives the same bits. Pass by reference and inline: helpers have no calling convention common to the levels.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers can't run the resolvers that choose a clone: they run before the sanitizer is set up.
#define LORASHARD_SIMD __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define LORASHARD_SIMD
#endif
#define LORASHARD_INLINE inline __attribute__((always_inline))

namespace lorashard::simd {

constexpr int64_t kWidth = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

LORASHARD_INLINE void load(Floats& to, const float* from) { std::memcpy(&to, from, sizeof(to)); }
LORASHARD_INLINE void store(float* to, const Floats& from) { std::memcpy(to, &from, sizeof(from)); }

LORASHARD_INLINE float sum(const Floats& x) {
  float lanes[16];
  store(lanes, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

LORASHARD_INLINE float max(const Floats& x) {
  float lanes[16];
  store(lanes, x);
  for (int width = 8; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
}

/// x = exp(x), within 2 ulp; below -87 it is exp(-87), about 1e-38; x <= 88.
LORASHARD_INLINE void exp(Floats& x) {
  const Floats least = Floats{} - 87.0f;
  x = x < least ? least : x;
  // x = n ln 2 + r; adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const Floats shifted = x * 1.44269504088896341f + 12582912.0f;
  const Floats n = shifted - 12582912.0f;
  const Floats r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Floats p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000 + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  x = p * power;
}

}  // namespace lorashard::simd
