#include "dist/reduction.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>

#include "dist/cuda_library.h"
#include "tests/support/gpu_world.h"

namespace lorashard {
namespace {

constexpr int64_t kParameters = 100003;

/// The gradient of a micro-batch, the same on every rank that asks.
at::Tensor gradient_of(int64_t micro_batch) {
  return at::sin(at::arange(kParameters, at::kDouble) * (1.0 + 0.1 * static_cast<double>(micro_batch))).to(at::kFloat) *
         1e-3;
}

/// Two micro-batches of each rank, summed on its GPU over NCCL and on its host over MPI.
void expect_same_bits(bool deterministic, double loss_scale, bool overflow_on_last_rank) {
  const auto communicator = cuda_library().make_nccl_communicator(gpu_control(), gpu_options());
  const at::Device gpu = cuda_library().current_device();
  const World& world = communicator->world();
  const int64_t micro_batches = 2 * world.world_size;
  GradientReduction host(kParameters, micro_batches, deterministic),
      device(kParameters, micro_batches, deterministic, gpu);
  for (int64_t m = world.rank; m < micro_batches; m += world.world_size) {
    at::Tensor gradient = gradient_of(m) * loss_scale;
    if (overflow_on_last_rank && m == micro_batches - 1) gradient[7] = std::numeric_limits<float>::infinity();
    host.add(gradient, 0.1 * static_cast<double>(m + 1), loss_scale);
    device.add(gradient.to(gpu),
               at::full({}, 0.1 * static_cast<double>(m + 1), at::TensorOptions(at::kDouble).device(gpu)), loss_scale);
  }
  const auto expected = host.reduce(gpu_control());
  const auto found = device.reduce_without_waiting(*communicator);
  EXPECT_EQ(found.found_inf.item<float>(), overflow_on_last_rank ? 1.0f : 0.0f);
  EXPECT_EQ(expected.skipped, overflow_on_last_rank);
  if (deterministic) {
    EXPECT_EQ(found.mean_loss.item<double>(), expected.mean_loss);
    EXPECT_TRUE(at::equal(found.mean_gradient.cpu(), expected.mean_gradient));
  } else {
    EXPECT_TRUE(at::allclose(found.mean_gradient.cpu(), expected.mean_gradient, 1e-5, 1e-9));
  }
}

TEST(GpuReduction, IntegerSumsHaveTheBitsOfTheHost) { expect_same_bits(true, 1, false); }
TEST(GpuReduction, TheLossScaleIsDividedOutExactly) { expect_same_bits(true, 65536, false); }
TEST(GpuReduction, AnOverflowOnOneRankIsSeenByAll) { expect_same_bits(true, 65536, true); }
TEST(GpuReduction, FloatSumsAreCloseToThoseOfTheHost) { expect_same_bits(false, 1, false); }

}  // namespace
}  // namespace lorashard
