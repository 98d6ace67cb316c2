#include "trainer/batch_feed.h"

#include <utility>
#include <vector>

namespace lorashard {

BatchFeed::BatchFeed(DataLoader& loader, int64_t num_batches, at::Device device) : loader_(loader), left_(num_batches) {
  if (device.is_cuda()) copier_ = cuda_library().make_device_copier(device);
}

Batch BatchFeed::next() {
  if (!copier_) return loader_.next();
  if (!coming_) begin();
  Batch batch = std::move(*coming_);
  coming_.reset();
  const std::vector<at::Tensor> on_device = copier_->take();
  size_t i = 0;
  for (at::Tensor* tensor : tensors_of(batch)) *tensor = on_device[i++];
  return batch;
}

void BatchFeed::prefetch() {
  if (copier_ && !coming_ && left_ > 0) begin();
}

void BatchFeed::begin() {
  coming_ = loader_.next();
  --left_;
  std::vector<at::Tensor> host;
  for (const at::Tensor* tensor : tensors_of(*coming_)) host.push_back(tensor->contiguous());
  copier_->begin(host);
}

}  // namespace lorashard
