// Which rows a micro-batch holds where pictures are in buckets: all of one bucket. A pure function, no state
// (docs/determinism.md).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/bucket_manager.h"
#include "data/pack.h"
#include "data/sampler.h"

namespace lorashard {

/// The images that an epoch has of one size.
struct Bucket {
  ImageSize size;
  std::vector<int64_t> rows;  ///< ascending, each as often as its repeats
};

/// The first `num_images` images of an epoch by bucket; buckets by width, then height, none of them empty. Throws what
/// select_bucket() throws.
std::vector<Bucket> make_buckets(const Pack& pack, const BucketManager& manager, int64_t num_images);

/// "448x576: 5, 512x512: 20": width x height and how many images.
std::string describe(const std::vector<Bucket>& buckets);

/// What is to be said of buckets with fewer than `train_batch_size` images; empty where there is none.
std::string describe_small_buckets(const std::vector<Bucket>& buckets, int64_t train_batch_size);

/// Of an epoch: each bucket's images, filled up to whole micro-batches.
int64_t micro_batches_per_epoch(const std::vector<Bucket>& buckets, int64_t train_batch_size);

class BucketSampler {
 public:
  struct MicroBatch {
    ImageSize size;  ///< of its bucket
    std::vector<Slot> slots;
  };

  BucketSampler(uint64_t seed, int64_t train_batch_size, std::vector<Bucket> buckets);
  MicroBatch micro_batch(int64_t m) const;

 private:
  uint64_t seed_;
  int64_t train_batch_size_;
  std::vector<Bucket> buckets_;
  std::vector<int64_t> end_of_bucket_;  // the micro-batch after the last of each bucket, before they are permuted
};

}  // namespace lorashard
