#include "trainer/loss_scale.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <memory>
#include <string>

#include "dist/agreement.h"
#include "dist/reduction.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

/// One step of fp16: each rank adds one micro-batch, its gradient scaled; on `bad_rank` one element overflowed.
GradientReduction::Result step(Communicator& communicator, GradientReduction& reduction, LossScale& scale,
                               int bad_rank) {
  const int rank = mpi_world().rank;
  at::Tensor gradient = at::full({5}, 0.25f * static_cast<float>(rank + 1)) * scale.value();
  if (rank == bad_rank) gradient[3] = std::numeric_limits<float>::infinity();
  reduction.add(gradient, 1.0, scale.value());
  auto result = reduction.reduce(communicator);
  scale.update(result.skipped);
  return result;
}

TEST(LossScale, AnOverflowOnOneRankSkipsOnAllAndHalvesOnce) {
  const World& world = mpi_world();
  const auto communicator = make_cpu_communicator(world);
  GradientReduction reduction(5, world.world_size, /*deterministic=*/true);
  LossScale scale(true, 65536, 2);
  const double mean = 0.25 * (world.world_size + 1) / 2;
  std::string seen;
  const auto see = [&](const GradientReduction::Result& result) {
    seen += std::to_string(result.skipped) + " " + std::to_string(scale.value()) + "\n";
  };
  see(step(*communicator, reduction, scale, /*bad_rank=*/-1));
  see(step(*communicator, reduction, scale, /*bad_rank=*/world.world_size - 1));
  EXPECT_EQ(scale.value(), 32768);
  for (int clean = 0; clean < 2; ++clean) {
    const auto result = step(*communicator, reduction, scale, -1);
    see(result);
    EXPECT_FALSE(result.skipped);
    EXPECT_NEAR(result.mean_gradient[3].item<double>(), mean, 1e-6);
  }
  EXPECT_EQ(scale.value(), 65536);
  require_same(*communicator, "what the ranks saw", seen);
}

}  // namespace
}  // namespace lorashard
