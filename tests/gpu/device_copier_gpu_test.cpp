#include <ATen/ATen.h>
#include <c10/cuda/CUDAFunctions.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "dist/cuda_library.h"
#include "tests/support/gpu_world.h"

namespace lorashard {
namespace {

std::vector<at::Tensor> batch(int64_t number, int64_t side) {
  return {at::full({2, 3, side, side}, static_cast<double>(number), at::kFloat), at::arange(77, at::kLong) + number};
}

TEST(DeviceCopier, EachBatchArrivesWholeWhileTheOneBeforeIsComputedOn) {
  const auto communicator = cuda_library().make_nccl_communicator(gpu_control(), gpu_options());
  const at::Device gpu = cuda_library().current_device();
  const auto copier = cuda_library().make_device_copier(gpu);
  const at::Tensor work = at::rand({2048, 2048}, at::TensorOptions(at::kFloat).device(gpu));
  std::vector<at::Tensor> sums;
  constexpr int64_t kBatches = 40;
  const auto side_of = [](int64_t number) {
    return number < 25 ? int64_t{256} : int64_t{320};
  };  // another shape midway
  copier->begin(batch(0, side_of(0)));
  for (int64_t number = 0; number < kBatches; ++number) {
    const std::vector<at::Tensor> on_device = copier->take();
    ASSERT_EQ(on_device.size(), 2u);
    ASSERT_TRUE(on_device[0].device() == gpu);
    // The GPU is behind the host, so that a copy that came too early would be seen below.
    at::Tensor product = work;
    for (int i = 0; i < 4; ++i) product = at::mm(product, work) * 1e-3;
    sums.push_back(at::stack({on_device[0].mean().to(at::kDouble), on_device[1].sum().to(at::kDouble)}));
    if (number + 1 < kBatches) copier->begin(batch(number + 1, side_of(number + 1)));
  }
  for (int64_t number = 0; number < kBatches; ++number) {
    const at::Tensor seen = sums[static_cast<size_t>(number)].cpu();
    EXPECT_EQ(seen[0].item<double>(), static_cast<double>(number));
    EXPECT_EQ(seen[1].item<double>(), static_cast<double>(77 * 38 + 77 * number));
  }
  EXPECT_GT(cuda_library().peak_memory_bytes(gpu), int64_t{2048} * 2048 * 4);
}

}  // namespace
}  // namespace lorashard
