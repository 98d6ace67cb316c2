#include "dist/philox.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace lorashard {
namespace {

using Words = std::array<uint32_t, 4>;

// kat_vectors of Random123 1.14 (Salmon et al., SC11): philox4x32, 10 rounds.
TEST(Philox, GivesThePublishedVectors) {
  EXPECT_EQ(philox4x32_10({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  constexpr uint32_t kOnes = 0xffffffff;
  EXPECT_EQ(philox4x32_10({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32_10({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, PutsSeedAndSlotAndPurposeAndBlockWhereTheyBelong) {
  // The third published vector again, as a run would ask for it.
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x85a308d3243f6a88, static_cast<Purpose>(0x13198a2e), 0x03707344),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformsLieInTheUnitIntervalWithTheMomentsOfTheUniformDistribution) {
  constexpr int kCount = 100000;
  double sum = 0, squares = 0;
  for (uint64_t slot = 0; slot < kCount; ++slot) {
    const double u = uniform(1337, slot, Purpose::crop);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  // Five standard errors: 1/sqrt(12 n) for the mean, sqrt(4/45 / n) for the mean square.
  EXPECT_NEAR(sum / kCount, 0.5, 5 * 0.000913);
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 5 * 0.000943);
}

TEST(Philox, UniformIntegersCoverTheirRangeEvenly) {
  constexpr int64_t kRange = 7, kCount = 70000;
  std::vector<int64_t> counts(kRange);
  for (uint64_t slot = 0; slot < kCount; ++slot) ++counts.at(uniform_int(5, slot, Purpose::timestep, kRange));
  double chi_squared = 0;
  for (const int64_t count : counts) chi_squared += std::pow(count - kCount / kRange, 2) / (kCount / kRange);
  EXPECT_LT(chi_squared, 22.46);  // 6 degrees of freedom: exceeded once in 1000
}

TEST(Philox, UniformIntegersOfOneAreZero) {
  for (uint64_t slot = 0; slot < 100; ++slot) EXPECT_EQ(uniform_int(5, slot, Purpose::timestep, 1), 0);
}

TEST(Philox, NormalsHaveTheMomentsOfTheNormalDistribution) {
  std::vector<float> normals(400000);
  fill_normal(normals, 42, 7, Purpose::noise);
  double mean = 0, variance = 0, fourth = 0;
  for (const float z : normals) {
    ASSERT_TRUE(std::isfinite(z));
    mean += z;
    variance += double(z) * z;
    fourth += std::pow(double(z), 4);
  }
  const double n = static_cast<double>(normals.size());
  // Five standard errors: sqrt(1/n), sqrt(2/n), sqrt(96/n).
  EXPECT_NEAR(mean / n, 0.0, 5 * std::sqrt(1 / n));
  EXPECT_NEAR(variance / n, 1.0, 5 * std::sqrt(2 / n));
  EXPECT_NEAR(fourth / n, 3.0, 5 * std::sqrt(96 / n));
}

TEST(Philox, AShorterFillIsThePrefixOfALongerOne) {
  std::vector<float> all(23);
  fill_normal(all, 1, 2, Purpose::noise);
  for (size_t size = 1; size < all.size(); ++size) {
    std::vector<float> some(size);
    fill_normal(some, 1, 2, Purpose::noise);
    EXPECT_EQ(std::memcmp(some.data(), all.data(), size * sizeof(float)), 0) << size;
  }
}

TEST(Philox, SeedsAndSlotsAndPurposesAreIndependent) {
  const auto first = [](uint64_t seed, uint64_t slot, Purpose purpose) { return uniform(seed, slot, purpose); };
  const double here = first(1, 1, Purpose::flip);
  EXPECT_NE(here, first(2, 1, Purpose::flip));
  EXPECT_NE(here, first(1 + (uint64_t{1} << 32), 1, Purpose::flip));
  EXPECT_NE(here, first(1, 2, Purpose::flip));
  EXPECT_NE(here, first(1, 1 + (uint64_t{1} << 32), Purpose::flip));
  EXPECT_NE(here, first(1, 1, Purpose::crop));
  EXPECT_EQ(here, first(1, 1, Purpose::flip));
}

}  // namespace
}  // namespace lorashard
