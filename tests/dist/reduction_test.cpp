#include "dist/reduction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr int64_t kParameters = 1003;  // no multiple of any vector width
constexpr int64_t kMicroBatches = 12;

/// Gradients over the magnitudes of training: 1e-9 to 1.
std::vector<at::Tensor> random_gradients(unsigned seed = 1) {
  std::mt19937 generator(seed);
  std::uniform_real_distribution<float> exponent(-9, 0), sign(-1, 1);
  std::vector<at::Tensor> gradients;
  for (int64_t m = 0; m < kMicroBatches; ++m) {
    at::Tensor g = at::empty({kParameters}, at::kFloat);
    float* values = g.mutable_data_ptr<float>();
    for (int64_t i = 0; i < kParameters; ++i) {
      values[i] = std::copysign(std::pow(10.0f, exponent(generator)), sign(generator));
    }
    gradients.push_back(g);
  }
  return gradients;
}

double loss_of(size_t m) { return 0.1 + 1.0 / (3.0 + static_cast<double>(m)); }

/// The step's result when each part (a rank) adds its micro-batches in the order given; the parts' sums are added.
struct Sums final : Communicator {
  explicit Sums(std::vector<at::Tensor> others) : Communicator(World{}), others_(std::move(others)) {}
  void all_reduce_sum(at::Tensor& flat) override {
    mine = flat.clone();
    for (const at::Tensor& other : others_) flat += other;
  }
  void broadcast(at::Tensor&, int) override {}
  std::vector<std::string> all_gather(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
  at::Tensor mine;

 private:
  std::vector<at::Tensor> others_;
};

GradientReduction::Result reduce_parts(const std::vector<at::Tensor>& gradients,
                                       const std::vector<std::vector<size_t>>& parts, bool deterministic = true) {
  std::vector<at::Tensor> sums;
  for (size_t part = 0; part < parts.size(); ++part) {
    GradientReduction reduction(kParameters, kMicroBatches, deterministic);
    for (const size_t m : parts[part]) reduction.add(gradients[m], loss_of(m));
    const bool last = part + 1 == parts.size();
    Sums sum(last ? sums : std::vector<at::Tensor>());
    auto result = reduction.reduce(sum);
    if (last) return result;
    sums.push_back(sum.mine);
  }
  return {};
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.numel() == b.numel() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

TEST(Reduction, GivesTheSameBitsForAnyOrderAndAnySplit) {
  const auto gradients = random_gradients();
  std::vector<size_t> order(kMicroBatches);
  std::iota(order.begin(), order.end(), 0);
  const auto expected = reduce_parts(gradients, {order});
  std::mt19937 generator(7);
  for (int trial = 0; trial < 100; ++trial) {
    std::shuffle(order.begin(), order.end(), generator);
    std::vector<std::vector<size_t>> parts(1 + generator() % 5);
    for (const size_t m : order) parts[generator() % parts.size()].push_back(m);
    const auto result = reduce_parts(gradients, parts);
    ASSERT_TRUE(same_bits(result.mean_gradient, expected.mean_gradient)) << trial;
    ASSERT_EQ(result.mean_loss, expected.mean_loss) << trial;
    ASSERT_FALSE(result.skipped);
  }
}

TEST(Reduction, WouldNotGiveTheSameBitsInFloat) {
  // Shows that the gradients of the test above can tell orders apart.
  const auto gradients = random_gradients();
  std::vector<size_t> order(kMicroBatches);
  std::iota(order.begin(), order.end(), 0);
  const auto forward = reduce_parts(gradients, {order}, false);
  std::reverse(order.begin(), order.end());
  const auto backward = reduce_parts(gradients, {order}, false);
  EXPECT_FALSE(same_bits(forward.mean_gradient, backward.mean_gradient));
  EXPECT_TRUE(at::allclose(forward.mean_gradient, backward.mean_gradient, 1e-5, 1e-8));
}

TEST(Reduction, MeanIsTheFixedPointSumRoundedOnce) {
  const auto gradients = random_gradients(3);
  std::vector<size_t> order(kMicroBatches);
  std::iota(order.begin(), order.end(), 0);
  const auto result = reduce_parts(gradients, {order});
  const float* mean = result.mean_gradient.const_data_ptr<float>();
  for (int64_t i = 0; i < kParameters; ++i) {
    int64_t sum = 0;
    for (const auto& g : gradients)
      sum += std::llrint(std::ldexp(double(g.const_data_ptr<float>()[i]), kFixedPointBits));
    ASSERT_EQ(mean[i], static_cast<float>(double(sum) / std::ldexp(double(kMicroBatches), kFixedPointBits))) << i;
  }
}

TEST(Reduction, LargeGradientsTakeTheSameRoundingAsSmallOnes) {
  // One value at 4096 moves the whole gradient onto the slow path (2^51 = 2048 * 2^40); the others must not change.
  at::Tensor small = random_gradients(5)[0], large = small.clone();
  small[0] = 1.0f;
  large[0] = 4096.0f;
  GradientReduction fast(kParameters, 4, true), slow(kParameters, 4, true);
  const auto communicator = make_cpu_communicator(World{});
  fast.add(small, 1.0);
  slow.add(large, 1.0);
  const at::Tensor a = fast.reduce(*communicator).mean_gradient, b = slow.reduce(*communicator).mean_gradient;
  EXPECT_TRUE(same_bits(a.narrow(0, 1, kParameters - 1).clone(), b.narrow(0, 1, kParameters - 1).clone()));
  EXPECT_EQ(b[0].item<float>(), 1024.0f);
}

TEST(Reduction, RoundsTiesToEven) {
  const float unit = std::ldexp(1.0f, -kFixedPointBits);
  const std::vector<float> values = {0.5f * unit, 1.5f * unit, 2.5f * unit, -0.5f * unit, -1.5f * unit, 0.75f * unit};
  const std::vector<float> expected = {0, 2 * unit, 2 * unit, 0, -2 * unit, unit};
  at::Tensor g = at::tensor(values);
  GradientReduction reduction(g.numel(), 1, true);
  reduction.add(g, 0.0);
  const auto result = reduction.reduce(*make_cpu_communicator(World{}));
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(result.mean_gradient[static_cast<int64_t>(i)].item<float>(), expected[i]) << i;
  }
}

TEST(Reduction, DividesThePowerOfTwoLossScaleOutExactly) {
  const at::Tensor g = random_gradients(9)[0];
  GradientReduction plain(kParameters, 1, true), scaled(kParameters, 1, true);
  const auto communicator = make_cpu_communicator(World{});
  plain.add(g, 0.25);
  scaled.add(g * 65536.0f, 0.25, 65536.0);
  const auto a = plain.reduce(*communicator), b = scaled.reduce(*communicator);
  EXPECT_TRUE(same_bits(a.mean_gradient, b.mean_gradient));
  EXPECT_EQ(b.mean_loss, 0.25);
  EXPECT_THROW(plain.add(g, 0.25, 3.0), Error);
}

TEST(Reduction, AnyNonFiniteOrOutOfRangeValueSkipsTheStepAndTheNextOneIsClean) {
  const float infinity = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const float beyond = std::ldexp(1.0f, 62 - kFixedPointBits - 1) * 1.01f;  // M = 2 below
  const auto communicator = make_cpu_communicator(World{});
  const at::Tensor good = random_gradients(2)[0];
  for (const bool deterministic : {true, false}) {
    for (const float bad : {infinity, -infinity, nan, -nan, beyond}) {
      for (const int64_t place : {int64_t{0}, int64_t{500}, kParameters - 1}) {
        if (bad == beyond && !deterministic) continue;  // fp32 has room for it
        GradientReduction reduction(kParameters, 2, deterministic);
        at::Tensor g = good.clone();
        g[place] = bad;
        reduction.add(good, 0.5);
        reduction.add(g, 0.5);
        auto result = reduction.reduce(*communicator);
        EXPECT_TRUE(result.skipped) << bad << " at " << place;
        EXPECT_EQ(result.mean_loss, 0.5) << "a loss that is finite is still reported";
        reduction.add(good, 0.5);
        reduction.add(good, 0.5);
        result = reduction.reduce(*communicator);
        EXPECT_FALSE(result.skipped);
        EXPECT_EQ(result.mean_loss, 0.5);
      }
    }
  }
}

TEST(Reduction, TheLargestAllowedGradientsOfAllMicroBatchesDoNotOverflow) {
  // 2^62 / M each, M = 4: their sum is 2^62, and the mean exact.
  const float largest = std::ldexp(1.0f, 62 - kFixedPointBits - 2);
  GradientReduction reduction(2, 4, true);
  for (int m = 0; m < 4; ++m) reduction.add(at::tensor({largest, -largest}), 0.0);
  const auto result = reduction.reduce(*make_cpu_communicator(World{}));
  EXPECT_FALSE(result.skipped);
  EXPECT_EQ(result.mean_gradient[0].item<float>(), largest);
  EXPECT_EQ(result.mean_gradient[1].item<float>(), -largest);
}

TEST(Reduction, ABadLossSkipsTheStepAndIsReportedAsNaN) {
  for (const bool deterministic : {true, false}) {
    for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
      GradientReduction reduction(3, 2, deterministic);
      reduction.add(at::zeros({3}), 1.0);
      reduction.add(at::zeros({3}), bad);
      const auto result = reduction.reduce(*make_cpu_communicator(World{}));
      EXPECT_TRUE(result.skipped);
      EXPECT_TRUE(std::isnan(result.mean_loss));
    }
  }
}

TEST(Reduction, AFloatSumThatOverflowsSkipsTheStep) {
  const float largest = std::numeric_limits<float>::max();
  GradientReduction reduction(1, 2, false);
  reduction.add(at::tensor({largest}), 0.0);
  reduction.add(at::tensor({largest}), 0.0);
  EXPECT_TRUE(reduction.reduce(*make_cpu_communicator(World{})).skipped);
}

TEST(Reduction, RefusesAGradientOfAnotherSize) {
  GradientReduction reduction(3, 1, true);
  EXPECT_THROW(reduction.add(at::zeros({4}), 0.0), Error);
  EXPECT_THROW(reduction.add(at::zeros({3}, at::kDouble), 0.0), Error);
}

/// What both ways of the reduction make of the same micro-batches must be the same bits.
void expect_both_ways_agree(const std::vector<at::Tensor>& gradients, const std::vector<float>& losses,
                            bool deterministic, double loss_scale = 1.0) {
  const int64_t parameters = gradients[0].numel(), micro_batches = static_cast<int64_t>(gradients.size());
  GradientReduction host(parameters, micro_batches, deterministic), tensors(parameters, micro_batches, deterministic);
  const auto communicator = make_cpu_communicator(World{});
  for (int step = 0; step < 2; ++step) {  // the second shows that the sums were cleared
    for (size_t m = 0; m < gradients.size(); ++m) {
      host.add(gradients[m], losses[m], loss_scale);
      tensors.add_without_waiting(gradients[m], at::scalar_tensor(losses[m], at::kFloat), loss_scale);
    }
    const auto expected = host.reduce(*communicator);
    const auto found = tensors.reduce_without_waiting(*communicator);
    ASSERT_EQ(found.found_inf.scalar_type(), at::kFloat);
    EXPECT_EQ(found.found_inf.item<float>(), expected.skipped ? 1.0f : 0.0f);
    const double loss = found.mean_loss.item<double>();
    EXPECT_TRUE(loss == expected.mean_loss || (std::isnan(loss) && std::isnan(expected.mean_loss))) << loss;
    EXPECT_TRUE(same_bits(found.mean_gradient, expected.mean_gradient));
  }
}

TEST(Reduction, TensorOperationsGiveTheBitsOfTheLoops) {
  std::vector<float> losses;
  for (int64_t m = 0; m < kMicroBatches; ++m) losses.push_back(static_cast<float>(loss_of(static_cast<size_t>(m))));
  for (const bool deterministic : {true, false}) {
    for (unsigned seed = 1; seed <= 5; ++seed) expect_both_ways_agree(random_gradients(seed), losses, deterministic);
    auto scaled = random_gradients(9);
    for (at::Tensor& g : scaled) g.mul_(65536.0);
    expect_both_ways_agree(scaled, losses, deterministic, 65536.0);
    scaled[3][7] = 5e6;  // beyond 2^51: the loops' other path
    expect_both_ways_agree(scaled, losses, deterministic, 1.0);
  }
}

TEST(Reduction, TensorOperationsRoundTiesAsTheLoopsDo) {
  const float unit = std::ldexp(1.0f, -kFixedPointBits);
  const at::Tensor ties =
      at::tensor(std::vector<float>{0.5f * unit, 1.5f * unit, 2.5f * unit, -0.5f * unit, -1.5f * unit, -2.5f * unit,
                                    0.75f * unit, -0.75f * unit, 0.0f, -0.0f});
  expect_both_ways_agree({ties}, {0.5f * unit}, true);
  expect_both_ways_agree({ties, ties * 3, -ties}, {1.5f * unit, 2.5f * unit, 0}, true);
}

TEST(Reduction, TensorOperationsSeeTheSameViolations) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInf = std::numeric_limits<float>::infinity();
  const auto with = [](float value) {
    at::Tensor g = at::full({5}, 0.25f);
    g[2] = value;
    return g;
  };
  for (const bool deterministic : {true, false}) {
    for (const float bad : {kNan, kInf, -kInf, 3e38f, 1e7f, -1e7f}) {
      expect_both_ways_agree({with(1), with(bad)}, {1, 2}, deterministic);
      expect_both_ways_agree({with(bad), with(bad)}, {1, bad}, deterministic);
      expect_both_ways_agree({with(1), with(1)}, {bad, 2}, deterministic);
    }
    expect_both_ways_agree({with(3e38f), with(3e38f)}, {1, 2}, deterministic);  // finite, but not their fp32 sum
  }
}

}  // namespace
}  // namespace lorashard
