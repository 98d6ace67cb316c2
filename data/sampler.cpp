#include "data/sampler.h"

#include <algorithm>
#include <numeric>

#include "dist/error.h"
#include "dist/permutation.h"

namespace lorashard {

Sampler::Sampler(uint64_t seed, int64_t num_samples, int64_t train_batch_size, bool class_images,
                 const std::vector<int64_t>& repeats)
    : seed_(seed), num_samples_(num_samples), train_batch_size_(train_batch_size), class_images_(class_images) {
  LORASHARD_CHECK(num_samples > 0 && train_batch_size > 0, "{} samples, {} a micro-batch", num_samples, train_batch_size);
  if (repeats.empty()) return;
  end_of_row_.resize(repeats.size());
  std::inclusive_scan(repeats.begin(), repeats.end(), end_of_row_.begin());
  LORASHARD_CHECK(end_of_row_.back() >= num_samples, "{} images in an epoch, of {}", num_samples, end_of_row_.back());
}

std::vector<Slot> Sampler::micro_batch(int64_t m) const {
  std::vector<Slot> slots;
  for (int64_t i = 0; i < train_batch_size_; ++i) {
    const int64_t slot = m * train_batch_size_ + i;
    const int64_t epoch = slot / num_samples_;
    const Permutation order(seed_, static_cast<uint64_t>(epoch), num_samples_, purpose_of(Purpose::permutation, class_images_));
    int64_t row = order(slot % num_samples_);
    if (!end_of_row_.empty())
      row = std::upper_bound(end_of_row_.begin(), end_of_row_.end(), row) - end_of_row_.begin();
    slots.push_back({static_cast<uint64_t>(slot), row, epoch});
  }
  return slots;
}

MicroBatchSchedule::MicroBatchSchedule(int64_t num_micro_batches, int rank, int world_size, int64_t first_step,
                                       int64_t end_step)
    : num_micro_batches_(num_micro_batches),
      rank_(rank),
      world_size_(world_size),
      first_step_(first_step),
      end_step_(end_step),
      per_step_(rank < num_micro_batches ? (num_micro_batches - rank + world_size - 1) / world_size : 0) {}

int64_t MicroBatchSchedule::size() const { return per_step_ * (end_step_ - first_step_); }

int64_t MicroBatchSchedule::operator[](int64_t i) const {
  LORASHARD_CHECK(i >= 0 && i < size(), "micro-batch {} of {}", i, size());
  const int64_t step = first_step_ + i / per_step_;
  return step * num_micro_batches_ + rank_ + (i % per_step_) * world_size_;
}

}  // namespace lorashard
