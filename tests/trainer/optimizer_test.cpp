#include "trainer/optimizer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

at::Tensor values(int64_t count, double scale) {
  return at::sin(at::arange(count, at::kDouble).mul_(0.7)).mul_(scale).to(at::kFloat);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

TEST(AdamW, FollowsTheFormulaOfThePaperInDouble) {
  const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.99, .weight_decay = 0.1, .epsilon = 1e-8};
  const double lr = 1e-2;
  at::Tensor parameters = values(100, 1.0);
  at::Tensor p = parameters.to(at::kDouble), m = at::zeros_like(p), v = at::zeros_like(p);
  AdamW optimizer(parameters, options);
  for (int k = 1; k <= 5; ++k) {
    const at::Tensor gradient = values(100, 0.1 * k);
    optimizer.step(gradient, lr);
    const at::Tensor g = gradient.to(at::kDouble);
    m = options.beta1 * m + (1 - options.beta1) * g;
    v = options.beta2 * v + (1 - options.beta2) * g * g;
    const at::Tensor m_hat = m / (1 - std::pow(options.beta1, k)), v_hat = v / (1 - std::pow(options.beta2, k));
    p = p * (1 - lr * options.weight_decay) - lr * m_hat / (v_hat.sqrt() + options.epsilon);
  }
  EXPECT_EQ(optimizer.updates, 5);
  EXPECT_LT((parameters.to(at::kDouble) - p).abs().max().item<double>(), 5e-7);
}

TEST(AdamW, ContinuesBitForBitFromItsStateAndUpdateCount) {
  at::Tensor whole = values(5000, 1.0);
  AdamW one(whole, {});
  for (int k = 0; k < 6; ++k) one.step(values(5000, 0.1 + k), 1e-3);

  at::Tensor first = values(5000, 1.0);
  AdamW before(first, {});
  for (int k = 0; k < 3; ++k) before.step(values(5000, 0.1 + k), 1e-3);
  at::Tensor second = first.clone();
  AdamW after(second, {});
  after.exp_avg = before.exp_avg.clone();
  after.exp_avg_sq = before.exp_avg_sq.clone();
  after.updates = before.updates;
  for (int k = 3; k < 6; ++k) after.step(values(5000, 0.1 + k), 1e-3);

  EXPECT_TRUE(same_bits(whole, second));
  EXPECT_TRUE(same_bits(one.exp_avg_sq, after.exp_avg_sq));
}

TEST(AdamW, RefusesAGradientOfAnotherLength) {
  AdamW optimizer(values(10, 1.0), {});
  EXPECT_THROW(optimizer.step(values(9, 1.0), 1e-3), Error);
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

}  // namespace
}  // namespace lorashard
