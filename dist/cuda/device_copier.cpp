#include "dist/cuda/device_copier.h"

#include <c10/core/GradMode.h>
#include <ATen/ATen.h>
#include <ATen/cuda/CUDAEvent.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <array>

#include "dist/error.h"

namespace lorashard {
namespace {

class PinnedCopier final : public DeviceCopier {
 public:
  explicit PinnedCopier(at::Device device)
      : device_(device), stream_(c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index())) {}

  ~PinnedCopier() override { stream_.synchronize(); }

  void begin(const std::vector<at::Tensor>& host) override {
    const c10::NoGradGuard no_grad;
    newest_ ^= 1;
    Buffers& buffers = buffers_[newest_];
    buffers.copied.synchronize();  // of two batches ago: over long since, unless the host is two batches ahead
    fit(buffers, host);
    for (size_t i = 0; i < host.size(); ++i) buffers.pinned[i].copy_(host[i]);
    // What the computation still does with these buffers comes first.
    buffers.used.block(stream_);
    const c10::cuda::CUDAStreamGuard guard(stream_);
    for (size_t i = 0; i < host.size(); ++i) buffers.device[i].copy_(buffers.pinned[i], /*non_blocking=*/true);
    buffers.copied.record(stream_);
  }

  std::vector<at::Tensor> take() override {
    const auto computing = c10::cuda::getCurrentCUDAStream(device_.index());
    // All work on the other buffers has been enqueued by now.
    buffers_[newest_ ^ 1].used.record(computing);
    buffers_[newest_].copied.block(computing);
    return buffers_[newest_].device;
  }

 private:
  struct Buffers {
    std::vector<at::Tensor> pinned, device;
    at::cuda::CUDAEvent copied, used;
  };

  /// New buffers where number, shapes or types differ from those there.
  void fit(Buffers& buffers, const std::vector<at::Tensor>& host) {
    buffers.pinned.resize(host.size());
    buffers.device.resize(host.size());
    bool made = false;
    for (size_t i = 0; i < host.size(); ++i) {
      LORASHARD_CHECK(host[i].is_contiguous() && host[i].device().is_cpu(), "expected a contiguous tensor of the host");
      at::Tensor &pinned = buffers.pinned[i], &device = buffers.device[i];
      if (pinned.defined() && pinned.sizes() == host[i].sizes() && pinned.scalar_type() == host[i].scalar_type())
        continue;
      pinned = at::empty(host[i].sizes(), host[i].options().pinned_memory(true));
      device = at::empty(host[i].sizes(), host[i].options().device(device_));
      made = true;
    }
    // Memory that the caching allocator gives again may still be read by work enqueued on the computing stream.
    if (made) buffers.used.record(c10::cuda::getCurrentCUDAStream(device_.index()));
  }

  at::Device device_;
  c10::cuda::CUDAStream stream_;
  std::array<Buffers, 2> buffers_;
  size_t newest_ = 0;
};

}  // namespace

at::Device current_device() { return at::Device(at::kCUDA, c10::cuda::current_device()); }

std::unique_ptr<DeviceCopier> make_device_copier(at::Device device) { return std::make_unique<PinnedCopier>(device); }

int64_t peak_memory_bytes(at::Device device) {
  const auto stats = c10::cuda::CUDACachingAllocator::getDeviceStats(device.index());
  return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
}

}  // namespace lorashard
