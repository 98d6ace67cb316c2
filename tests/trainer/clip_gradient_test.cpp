#include "trainer/clip_gradient.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

namespace lorashard {
namespace {

at::Tensor values(int64_t count, double scale) {
  return at::sin(at::arange(count, at::kDouble).mul_(0.7)).mul_(scale).to(at::kFloat);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

TEST(ClipGradient, ScalesToTheMaximumAndReturnsTheNormBefore) {
  at::Tensor gradient = at::full({400}, 0.5f);
  EXPECT_EQ(clip_gradient(gradient, 1.0), 10.0);
  EXPECT_FLOAT_EQ(gradient[7].item<float>(), float(0.5 / (10.0 + 1e-6)));
}

TEST(ClipGradient, LeavesASmallerGradientAlone) {
  const at::Tensor original = values(1000, 1e-3);
  at::Tensor gradient = original.clone();
  clip_gradient(gradient, 1.0);
  EXPECT_TRUE(same_bits(gradient, original));
}

TEST(ClipGradient, GivesTheSameBitsForAnyNumberOfThreads) {
  const int threads_before = at::get_num_threads();
  const at::Tensor original = values(1'000'003, 3.0);
  std::vector<double> norms;
  std::vector<at::Tensor> clipped;
  for (int threads : {1, 2, 3, 4}) {
    at::set_num_threads(threads);
    clipped.push_back(original.clone());
    norms.push_back(clip_gradient(clipped.back(), 1.0));
  }
  at::set_num_threads(threads_before);
  for (size_t i = 1; i < norms.size(); ++i) {
    EXPECT_EQ(norms[i], norms[0]);
    EXPECT_TRUE(same_bits(clipped[i], clipped[0]));
  }
}

TEST(ClipGradient, SumsInDoubleWhatFloatWouldLose) {
  at::Tensor gradient = at::full({4'000'000}, 1e-4f);
  gradient[0] = 1e4f;
  const double tiny = double(1e-4f) * double(1e-4f);
  EXPECT_NEAR(clip_gradient(gradient, 1e9), std::sqrt(1e8 + 3'999'999 * tiny), 1e-9);
}

TEST(ClipGradient, NormOfANonFiniteGradientIsNonFinite) {
  at::Tensor gradient = values(100, 1.0);
  gradient[42] = NAN;
  EXPECT_TRUE(std::isnan(clip_gradient(gradient, 1.0)));
}

TEST(ClipGradient, ZeroMeansNever) {
  for (const auto clip : {+[](at::Tensor& g) { return clip_gradient(g, 0); },
                          +[](at::Tensor& g) { return clip_gradient_without_waiting(g, 0).item<double>(); }}) {
    at::Tensor gradient = at::full({4}, 5.0, at::kFloat);
    EXPECT_EQ(clip(gradient), 10.0);
    EXPECT_TRUE(at::equal(gradient, at::full({4}, 5.0, at::kFloat)));
  }
}

}  // namespace
}  // namespace lorashard
