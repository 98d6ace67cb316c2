#include "models/simd.h"

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <cmath>

namespace {
int calls_of_fmaf = 0;
}

// Stands before libm's: what a level without the instruction has to call for each of its sixteen products.
extern "C" float fmaf(float a, float b, float c) noexcept {
  ++calls_of_fmaf;
  static const auto libm = reinterpret_cast<float (*)(float, float, float)>(dlsym(RTLD_NEXT, "fmaf"));
  return libm(a, b, c);
}

namespace lorashard {
namespace {

LORASHARD_SIMD void add_products(const float* a, const float* b, float* sums) {
  simd::Floats x, y, z;
  simd::load(x, a), simd::load(y, b), simd::load(z, sums);
  simd::fma(z, x, y);
  simd::store(sums, z);
}

TEST(Simd, ProductsAreFusedByTheProcessorNotByAFunction) {
#ifdef __x86_64__
  if (!__builtin_cpu_supports("fma") || !__builtin_cpu_supports("avx2")) GTEST_SKIP() << "this processor has no FMA";
#endif
  float a[16], b[16], sums[16];
  for (int i = 0; i < 16; ++i) a[i] = 1.0f + static_cast<float>(i), b[i] = 3.0f, sums[i] = 0.5f;
  calls_of_fmaf = 0;
  add_products(a, b, sums);
  EXPECT_EQ(calls_of_fmaf, 0);
  for (int i = 0; i < 16; ++i) EXPECT_EQ(sums[i], 3.0f * static_cast<float>(i + 1) + 0.5f);
}

}  // namespace
}  // namespace lorashard
