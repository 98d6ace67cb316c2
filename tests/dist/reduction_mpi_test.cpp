#include "dist/reduction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>

#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

constexpr int64_t kParameters = 5003, kMicroBatches = 10;  // 10 is no multiple of 3 or 4 ranks

at::Tensor gradient(int64_t m) {
  const at::Tensor x = at::arange(kParameters, at::kDouble);
  return (at::sin(x * (m + 1)) * at::exp(at::cos(x * 0.37 + m) * 10 - 10)).to(at::kFloat);
}

double loss(int64_t m) { return 0.1 + 1.0 / static_cast<double>(3 + m); }

/// The step over the ranks of `communicator`; micro-batch m is run by rank m mod world_size.
GradientReduction::Result step(Communicator& communicator, GradientReduction& reduction, int64_t bad = -1,
                               float bad_value = 0) {
  const World& world = communicator.world();
  for (int64_t m = world.rank; m < kMicroBatches; m += world.world_size) {
    at::Tensor g = gradient(m);
    if (m == bad) g[m * 7] = bad_value;
    reduction.add(g, loss(m));
  }
  return reduction.reduce(communicator);
}

std::string bits(const at::Tensor& tensor) {
  return {static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes()};
}

TEST(Reduction, GivesTheBitsOfOneRankOnAnyNumberOfRanks) {
  const auto communicator = make_cpu_communicator(mpi_world()), alone = make_cpu_communicator(World{});
  GradientReduction shared(kParameters, kMicroBatches, true), single(kParameters, kMicroBatches, true);
  const auto expected = step(*alone, single);
  const auto result = step(*communicator, shared);
  EXPECT_TRUE(bits(result.mean_gradient) == bits(expected.mean_gradient));
  EXPECT_EQ(result.mean_loss, expected.mean_loss);
  EXPECT_FALSE(result.skipped);
}

TEST(Reduction, FloatMeansHaveTheSameBitsOnEveryRankAndAreClose) {
  const auto communicator = make_cpu_communicator(mpi_world()), alone = make_cpu_communicator(World{});
  GradientReduction shared(kParameters, kMicroBatches, false), single(kParameters, kMicroBatches, false);
  const auto expected = step(*alone, single);
  const auto result = step(*communicator, shared);
  for (const std::string& other : communicator->all_gather(bits(result.mean_gradient))) {
    EXPECT_TRUE(other == bits(result.mean_gradient));
  }
  EXPECT_TRUE(at::allclose(result.mean_gradient, expected.mean_gradient, 1e-5, 1e-7));
  EXPECT_NEAR(result.mean_loss, expected.mean_loss, 1e-6);
}

TEST(Reduction, ABadValueOnOneRankIsSeenByAllAndOnlyInThatStep) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const float infinity = std::numeric_limits<float>::infinity();
  for (const bool deterministic : {true, false}) {
    GradientReduction reduction(kParameters, kMicroBatches, deterministic);
    for (int64_t m = 0; m < kMicroBatches; m += 3) {
      for (const float bad : {infinity, -infinity, std::nanf(""), 3e38f}) {
        if (bad == 3e38f && !deterministic) continue;
        EXPECT_TRUE(step(*communicator, reduction, m, bad).skipped) << bad << " in micro-batch " << m;
        EXPECT_FALSE(step(*communicator, reduction).skipped);
      }
    }
  }
}

TEST(Reduction, ARankWithoutMicroBatchesTakesPart) {
  const auto communicator = make_cpu_communicator(mpi_world());
  GradientReduction reduction(3, 1, true);
  if (mpi_world().rank == 0) reduction.add(at::tensor({1.0f, 2.0f, 3.0f}), 0.5);
  const auto result = reduction.reduce(*communicator);
  EXPECT_TRUE(at::equal(result.mean_gradient, at::tensor({1.0f, 2.0f, 3.0f})));
  EXPECT_EQ(result.mean_loss, 0.5);
}

}  // namespace
}  // namespace lorashard
