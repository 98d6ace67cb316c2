#include <ATen/ATen.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <gtest/gtest.h>

#include <memory>

#include "dist/agreement.h"
#include "dist/cuda_library.h"
#include "dist/error.h"
#include "tests/support/gpu_world.h"

namespace lorashard {
namespace {

/// The same numbers on the CPU of every rank, another sum's part on each.
at::Tensor part(int64_t size, at::ScalarType type) {
  const int rank = gpu_control().world().rank;
  if (type == at::kLong) return at::arange(size, at::kLong) * (rank + 1) + rank * (int64_t{1} << 40);
  return at::sin(at::arange(size, at::kDouble) * (rank + 1)).to(at::kFloat);
}

class NcclCommunicator : public ::testing::Test {
 protected:
  void SetUp() override {
    communicator_ = cuda_library().make_nccl_communicator(gpu_control(), gpu_options());
    device_ = at::Device(at::kCUDA, c10::cuda::current_device());
  }
  std::unique_ptr<Communicator> communicator_;
  at::Device device_ = at::kCPU;
};

TEST_F(NcclCommunicator, SumsIntegersAsMpiDoes) {
  for (const int64_t size : {int64_t{1}, int64_t{1000}, (int64_t{1} << 21) + 5}) {
    at::Tensor expected = part(size, at::kLong), sum = expected.to(device_);
    gpu_control().all_reduce_sum(expected);
    communicator_->all_reduce_sum(sum);
    EXPECT_TRUE(at::equal(sum.cpu(), expected)) << size;
  }
}

TEST_F(NcclCommunicator, SumsFloatsAsMpiDoesAndAlikeOnEveryRank) {
  const int64_t size = 300000;
  at::Tensor expected = part(size, at::kFloat), sum = expected.to(device_);
  gpu_control().all_reduce_sum(expected);
  communicator_->all_reduce_sum(sum);
  const at::Tensor found = sum.cpu();
  // |part| <= 1, so a sum of W parts is off by at most W * W * 2^-24 in either order.
  const double ranks = gpu_control().world().world_size;
  EXPECT_LE((found - expected).abs().max().item<double>(), 2 * ranks * ranks / (1 << 24));
  require_same(gpu_control(), "the sum", std::string(static_cast<const char*>(found.const_data_ptr()), found.nbytes()));
}

TEST_F(NcclCommunicator, ASumCanBeCapturedInAGraphAndReplayed) {
  at::Tensor buffer = at::zeros({1000}, at::TensorOptions(at::kLong).device(device_));
  at::cuda::CUDAGraph graph;
  {
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    graph.capture_begin();
    communicator_->all_reduce_sum(buffer);
    graph.capture_end();
  }
  for (int64_t replay = 1; replay <= 3; ++replay) {
    at::Tensor expected = part(1000, at::kLong) * replay;
    buffer.copy_(expected);
    gpu_control().all_reduce_sum(expected);
    graph.replay();
    EXPECT_TRUE(at::equal(buffer.cpu(), expected)) << replay;
  }
}

TEST_F(NcclCommunicator, CarriesControlMessages) {
  const World& world = communicator_->world();
  const auto gathered = communicator_->all_gather(std::string(static_cast<size_t>(world.rank) + 1, 'x'));
  ASSERT_EQ(gathered.size(), static_cast<size_t>(world.world_size));
  for (size_t i = 0; i < gathered.size(); ++i) EXPECT_EQ(gathered[i].size(), i + 1);
  at::Tensor flat = at::full({5}, world.rank, at::TensorOptions(at::kFloat).device(device_));
  communicator_->broadcast(flat, world.world_size - 1);
  EXPECT_EQ(flat.sum().item<double>(), 5.0 * (world.world_size - 1));
  communicator_->barrier();
}

TEST_F(NcclCommunicator, ASumThatAnotherRankNeverJoinsEndsAsALostRank) {
  if (communicator_->world().world_size < 2) GTEST_SKIP() << "one rank";
  NcclOptions options = gpu_options();
  options.timeout = std::chrono::seconds(5);
  const auto impatient = cuda_library().make_nccl_communicator(gpu_control(), options);
  if (impatient->world().rank == 0) {
    at::Tensor flat = at::ones({1000}, at::TensorOptions(at::kLong).device(device_));
    try {
      impatient->all_reduce_sum(flat);
      (void)flat.cpu();           // comes back because the watching thread aborts the sum
      impatient->all_gather("");  // throws before it asks the others
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::rank_lost);
    }
  }
  gpu_control().barrier();
}

}  // namespace
}  // namespace lorashard
