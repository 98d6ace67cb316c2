#include "dist/permutation.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(Permutation, IsABijectionForEverySmallN) {
  for (int64_t n = 1; n <= 600; ++n) {
    const Permutation permutation(1337, 3, n);
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) {
      const int64_t image = permutation(i);
      ASSERT_TRUE(image >= 0 && image < n) << n;
      ASSERT_FALSE(seen[static_cast<size_t>(image)]) << image << " twice, n " << n;
      seen[static_cast<size_t>(image)] = true;
    }
  }
}

TEST(Permutation, IsABijectionAtAndBesidePowersOfTwo) {
  for (const int64_t n : {1023, 1024, 1025, 4095, 4096, 4097, 65536, 65537, 100003}) {
    const Permutation permutation(99, 0, n);
    std::vector<bool> seen(static_cast<size_t>(n));
    for (int64_t i = 0; i < n; ++i) seen.at(static_cast<size_t>(permutation(i))) = true;
    EXPECT_EQ(std::count(seen.begin(), seen.end(), false), 0) << n;
  }
}

TEST(Permutation, StaysInRangeForABillionRowsAndMore) {
  for (const int64_t n : {int64_t{1000000000}, (int64_t{1} << 40) + 1, int64_t{1} << 56}) {
    const Permutation permutation(7, 11, n);
    std::vector<int64_t> images;
    for (int64_t i = 0; i < 2000; ++i) images.push_back(permutation(i));
    std::sort(images.begin(), images.end());
    EXPECT_GE(images.front(), 0);
    EXPECT_LT(images.back(), n);
    EXPECT_EQ(std::adjacent_find(images.begin(), images.end()), images.end());
    // Spread over the whole range: 2000 images leave no empty twentieth, but with probability 20 * 0.95^2000.
    for (int part = 0; part < 20; ++part) {
      const auto low = std::lower_bound(images.begin(), images.end(), n / 20 * part);
      EXPECT_NE(low, std::lower_bound(images.begin(), images.end(), n / 20 * (part + 1))) << n << " part " << part;
    }
  }
}

TEST(Permutation, DrawsEveryOrderOfFourRowsAboutEquallyOften) {
  constexpr int kEpochs = 24000;
  std::map<std::vector<int64_t>, int> counts;
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation permutation(1, epoch, 4);
    ++counts[{permutation(0), permutation(1), permutation(2), permutation(3)}];
  }
  ASSERT_EQ(counts.size(), 24u);
  double chi_squared = 0;
  for (const auto& [order, count] : counts) chi_squared += std::pow(count - kEpochs / 24, 2) / (kEpochs / 24.0);
  EXPECT_LT(chi_squared, 49.73);  // 23 degrees of freedom: exceeded once in 1000
}

TEST(Permutation, PlacesEachRowEvenlyOverEpochs) {
  constexpr int64_t kRows = 17;
  constexpr int kEpochs = 17000;
  std::vector<std::vector<int>> counts(kRows, std::vector<int>(kRows));
  for (uint64_t epoch = 0; epoch < kEpochs; ++epoch) {
    const Permutation permutation(2024, epoch, kRows);
    for (int64_t i = 0; i < kRows; ++i) ++counts[static_cast<size_t>(i)][static_cast<size_t>(permutation(i))];
  }
  double chi_squared = 0;
  for (const auto& row : counts) {
    for (const int count : row) chi_squared += std::pow(count - 1000, 2) / 1000.0;
  }
  EXPECT_LT(chi_squared, 330.5);  // 16 * 16 degrees of freedom: exceeded once in 1000
}

TEST(Permutation, DiffersByEpochAndSeedAndPack) {
  const Permutation one(1, 0, 1000), next(1, 1, 1000), other(2, 0, 1000), classes(1, 0, 1000, purpose_of(Purpose::permutation, true));
  int equal_next = 0, equal_other = 0, equal_classes = 0;
  for (int64_t i = 0; i < 1000; ++i) {
    equal_next += one(i) == next(i);
    equal_other += one(i) == other(i);
    equal_classes += one(i) == classes(i);
  }
  // One fixed point is expected of two independent permutations; 10 or more come once in 10 million.
  EXPECT_LT(equal_next, 10);
  EXPECT_LT(equal_other, 10);
  EXPECT_LT(equal_classes, 10);
}

TEST(Permutation, RefusesRowsOutOfRange) {
  const Permutation permutation(1, 0, 10);
  EXPECT_THROW(permutation(-1), Error);
  EXPECT_THROW(permutation(10), Error);
  EXPECT_THROW(Permutation(1, 0, 0), Error);
}

}  // namespace
}  // namespace lorashard
