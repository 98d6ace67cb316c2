// Sixteen floats at once, in GCC's vector types: one source, compiled for each level of x86-64 and chosen at run time
// (LORASHARD_SIMD before a function). Sums are lane by lane in a fixed order and products are fused where fma() says
// so, not where the compiler likes to, so every level gives the same bits. Pass by reference and inline: helpers have
// no calling convention common to the levels.
#pragma once
#include <cstdint>
#include <cstring>
#include <memory>

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Sanitizers can't run the resolvers that choose a clone: they run before the sanitizer is set up.
#define LORASHARD_SIMD __attribute__((target_clones("avx512f", "arch=x86-64-v3", "default")))
#define LORASHARD_FMA 1
#else
#define LORASHARD_SIMD
#ifdef __FP_FAST_FMAF
#define LORASHARD_FMA 1
#endif
#endif
#define LORASHARD_INLINE inline __attribute__((always_inline))

namespace lorashard::simd {

constexpr int64_t kWidth = 16;
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

/// Floats at a cache line's start, not initialised: a vector across two lines costs twice.
class Scratch {
 public:
  explicit Scratch(size_t size) : floats_(new float[size + 16]) {
    void* start = floats_.get();
    size_t space = (size + 16) * sizeof(float);
    data_ = static_cast<float*>(std::align(64, size * sizeof(float), start, space));
  }
  float* data() const { return data_; }

 private:
  std::unique_ptr<float[]> floats_;
  float* data_;
};

LORASHARD_INLINE void load(Floats& to, const float* from) { std::memcpy(&to, from, sizeof(to)); }
LORASHARD_INLINE void store(float* to, const Floats& from) { std::memcpy(to, &from, sizeof(from)); }

/// sum += a * b, rounded once (twice in builds for processors that would have to call a function for it).
LORASHARD_INLINE void fma(Floats& sum, const Floats& a, const Floats& b) {
#ifdef LORASHARD_FMA
  float x[16], y[16], z[16];  // GCC makes one instruction of this loop, but not of one over the vectors' own elements
  store(x, a), store(y, b), store(z, sum);
  for (int i = 0; i < 16; ++i) z[i] = __builtin_fmaf(x[i], y[i], z[i]);
  load(sum, z);
#else
  sum += a * b;
#endif
}
LORASHARD_INLINE void fma(Floats& sum, float a, const Floats& b) {
  float x[16];
  for (int i = 0; i < 16; ++i) x[i] = a;
  Floats all;
  load(all, x);
  fma(sum, all, b);
}

/// x = x * factor + constant.
LORASHARD_INLINE void scale_add(Floats& x, const Floats& factor, float constant) {
  Floats result = Floats{} + constant;
  fma(result, x, factor);
  x = result;
}

typedef float Eight __attribute__((vector_size(32)));
typedef float Four __attribute__((vector_size(16)));

/// The halves added, twice: lane i of the result is the sum of lanes i, i + 4, i + 8 and i + 12.
LORASHARD_INLINE void fold(Four& to, const Floats& x) {
  const Eight half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
  to = __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
}

LORASHARD_INLINE float sum(const Floats& x) {
  Four quarter;
  fold(quarter, x);
  return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}

/// sums[i] = sum(x[i]), with the same bits.
LORASHARD_INLINE void sum4(const Floats* x, float* sums) {
  Four a, b, c, d;
  fold(a, x[0]), fold(b, x[1]), fold(c, x[2]), fold(d, x[3]);
  const Four ab = __builtin_shufflevector(a, b, 0, 1, 4, 5) + __builtin_shufflevector(a, b, 2, 3, 6, 7);
  const Four cd = __builtin_shufflevector(c, d, 0, 1, 4, 5) + __builtin_shufflevector(c, d, 2, 3, 6, 7);
  const Four all = __builtin_shufflevector(ab, cd, 0, 2, 4, 6) + __builtin_shufflevector(ab, cd, 1, 3, 5, 7);
  std::memcpy(sums, &all, sizeof(all));
}

LORASHARD_INLINE float max(const Floats& x) {
  const Eight low = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
              high = __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15), half = low > high ? low : high;
  const Four a = __builtin_shufflevector(half, half, 0, 1, 2, 3), b = __builtin_shufflevector(half, half, 4, 5, 6, 7),
             c = a > b ? a : b, d = __builtin_shufflevector(c, c, 2, 3, 0, 1), e = c > d ? c : d;
  return e[0] > e[1] ? e[0] : e[1];
}

/// Four rows of four floats, `from_step` apart, become columns, `to_step` apart.
LORASHARD_INLINE void transpose4(const float* from, int64_t from_step, float* to, int64_t to_step) {
  Four a, b, c, d;
  std::memcpy(&a, from, sizeof(a));
  std::memcpy(&b, from + from_step, sizeof(b));
  std::memcpy(&c, from + 2 * from_step, sizeof(c));
  std::memcpy(&d, from + 3 * from_step, sizeof(d));
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
             cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
  std::memcpy(to, &a, sizeof(a));
  std::memcpy(to + to_step, &b, sizeof(b));
  std::memcpy(to + 2 * to_step, &c, sizeof(c));
  std::memcpy(to + 3 * to_step, &d, sizeof(d));
}

/// 0, 1, ... 15.
LORASHARD_INLINE void iota(Floats& to) { to = Floats{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

/// x = exp(x), within 2 ulp; below -87 it is exp(-87), about 1e-38; x <= 88.
LORASHARD_INLINE void exp(Floats& x) {
  const Floats least = Floats{} - 87.0f;
  x = x < least ? least : x;
  // x = n ln 2 + r; adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  Floats shifted = Floats{} + 12582912.0f;
  fma(shifted, 1.44269504088896341f, x);
  const Floats n = shifted - 12582912.0f;
  Floats r = x;
  fma(r, -0.693359375f, n);
  fma(r, 2.12194440e-4f, n);
  Floats p = Floats{} + 1.9875691500e-4f;
  scale_add(p, r, 1.3981999507e-3f);
  scale_add(p, r, 8.3334519073e-3f);
  scale_add(p, r, 4.1665795894e-2f);
  scale_add(p, r, 1.6666665459e-1f);
  scale_add(p, r, 5.0000001201e-1f);
  Floats result = r + 1.0f;
  fma(result, p, r * r);
  Ints bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  bits = (bits - 0x4B400000 + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof(power));
  x = result * power;
}

/// x = erf(x), within 4 ulp (the rational function Eigen has).
LORASHARD_INLINE void erf(Floats& x) {
  const Floats four = Floats{} + 4.0f;
  x = x > four ? four : x;
  x = x < -four ? -four : x;
  const Floats y = x * x;
  Floats p = Floats{} - 2.72614225801306e-10f;
  scale_add(p, y, 2.77068142495902e-08f);
  scale_add(p, y, -2.10102402082508e-06f);
  scale_add(p, y, -5.69250639462346e-05f);
  scale_add(p, y, -7.34990630326855e-04f);
  scale_add(p, y, -2.95459980854025e-03f);
  scale_add(p, y, -1.60960333262415e-02f);
  Floats q = Floats{} - 1.45660718464996e-05f;
  scale_add(q, y, -2.13374055278905e-04f);
  scale_add(q, y, -1.68282697438203e-03f);
  scale_add(q, y, -7.37332916720468e-03f);
  scale_add(q, y, -1.42647390514189e-02f);
  x = x * p / q;
}

}  // namespace lorashard::simd
