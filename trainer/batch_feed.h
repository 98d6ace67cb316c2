// The loader's batches where the computation is: as they are on a CPU; copied to a GPU while it computes the batch
// before. One thread.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "data/data_loader.h"
#include "dist/cuda_library.h"

namespace lorashard {

class BatchFeed {
 public:
  /// `loader`, which must outlive it, has `num_batches` left to give.
  BatchFeed(DataLoader& loader, int64_t num_batches, at::Device device);

  /// The next batch; on a GPU valid until the next but one is asked for. Throws what the loader throws.
  Batch next();
  /// After a batch's work was enqueued: begins to copy the one after it. Does nothing on a CPU.
  void prefetch();

 private:
  void begin();

  DataLoader& loader_;
  int64_t left_;
  std::unique_ptr<DeviceCopier> copier_;  // of a GPU
  std::optional<Batch> coming_;           // its tensors are being copied
};

}  // namespace lorashard
