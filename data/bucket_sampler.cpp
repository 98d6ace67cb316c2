#include "data/bucket_sampler.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <utility>

#include "dist/error.h"
#include "dist/permutation.h"

namespace lorashard {
namespace {

constexpr size_t kMostDescribed = 40;  // with bucket_no_upscale each picture may have a bucket of its own

int64_t micro_batches_of(const Bucket& bucket, int64_t train_batch_size) {
  return (static_cast<int64_t>(bucket.rows.size()) + train_batch_size - 1) / train_batch_size;
}

std::string to_text(const std::vector<const Bucket*>& buckets) {
  std::vector<std::string> parts;
  for (const Bucket* bucket : buckets) {
    if (parts.size() == kMostDescribed) {
      parts.push_back(fmt::format("and {} sizes more", buckets.size() - kMostDescribed));
      break;
    }
    parts.push_back(fmt::format("{}x{}: {}", bucket->size.width, bucket->size.height, bucket->rows.size()));
  }
  return fmt::format("{}", fmt::join(parts, ", "));
}

}  // namespace

std::vector<Bucket> make_buckets(const Pack& pack, const BucketManager& manager, int64_t num_images) {
  LORASHARD_CHECK(0 < num_images && num_images <= pack.num_images_in_epoch(), "{} of {} images", num_images,
                  pack.num_images_in_epoch());
  std::map<std::pair<int64_t, int64_t>, Bucket> by_size;  // width, height
  for (int64_t row = 0, left = num_images; left > 0; ++row) {
    const ImageSize size = manager.select_bucket(pack.size(row), pack.file_name(row)).cropped;
    Bucket& bucket = by_size.try_emplace({size.width, size.height}, Bucket{size, {}}).first->second;
    const int64_t times = std::min(left, pack.repeats(row));
    bucket.rows.insert(bucket.rows.end(), static_cast<size_t>(times), row);
    left -= times;
  }
  std::vector<Bucket> buckets;
  for (auto& [size, bucket] : by_size) {
    if (!bucket.rows.empty()) buckets.push_back(std::move(bucket));
  }
  return buckets;
}

std::string describe(const std::vector<Bucket>& buckets) {
  std::vector<const Bucket*> all;
  for (const Bucket& bucket : buckets) all.push_back(&bucket);
  return to_text(all);
}

std::string describe_small_buckets(const std::vector<Bucket>& buckets, int64_t train_batch_size) {
  std::vector<const Bucket*> small;
  for (const Bucket& bucket : buckets) {
    if (static_cast<int64_t>(bucket.rows.size()) < train_batch_size) small.push_back(&bucket);
  }
  if (small.empty()) return "";
  return fmt::format(
      "{} of {} buckets have fewer pictures than train_batch_size {}, which repeat inside their micro-batch: {}",
      small.size(), buckets.size(), train_batch_size, to_text(small));
}

int64_t micro_batches_per_epoch(const std::vector<Bucket>& buckets, int64_t train_batch_size) {
  int64_t count = 0;
  for (const Bucket& bucket : buckets) count += micro_batches_of(bucket, train_batch_size);
  return count;
}

BucketSampler::BucketSampler(uint64_t seed, int64_t train_batch_size, std::vector<Bucket> buckets)
    : seed_(seed), train_batch_size_(train_batch_size), buckets_(std::move(buckets)) {
  LORASHARD_CHECK(!buckets_.empty() && train_batch_size > 0, "{} buckets, {} a micro-batch", buckets_.size(),
                  train_batch_size);
  int64_t end = 0;
  for (const Bucket& bucket : buckets_) {
    LORASHARD_CHECK(!bucket.rows.empty(), "no image in the bucket {} x {}", bucket.size.width, bucket.size.height);
    end_of_bucket_.push_back(end += micro_batches_of(bucket, train_batch_size));
  }
}

BucketSampler::MicroBatch BucketSampler::micro_batch(int64_t m) const {
  const int64_t per_epoch = end_of_bucket_.back(), epoch = m / per_epoch;
  // 1. Which micro-batch of which bucket.
  const Permutation order(seed_, static_cast<uint64_t>(epoch), per_epoch, Purpose::bucket_order);
  const int64_t place = order(m % per_epoch);
  const auto b = std::upper_bound(end_of_bucket_.begin(), end_of_bucket_.end(), place) - end_of_bucket_.begin();
  const Bucket& bucket = buckets_[static_cast<size_t>(b)];
  const auto num_images = static_cast<int64_t>(bucket.rows.size());
  const int64_t number =
      place - end_of_bucket_[static_cast<size_t>(b)] + micro_batches_of(bucket, train_batch_size_);  // of the bucket
  // 2. Its images, in the bucket's own order; the last micro-batch goes on with the first of them.
  const auto num_buckets = static_cast<int64_t>(buckets_.size());
  const Permutation images(seed_, static_cast<uint64_t>(epoch * num_buckets + b), num_images, Purpose::bucket_images);
  MicroBatch out{.size = bucket.size, .slots = {}};
  for (int64_t i = 0; i < train_batch_size_; ++i) {
    const int64_t row = bucket.rows[static_cast<size_t>(images((number * train_batch_size_ + i) % num_images))];
    out.slots.push_back({static_cast<uint64_t>(m * train_batch_size_ + i), row, epoch});
  }
  return out;
}

}  // namespace lorashard
