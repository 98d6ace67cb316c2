// Aspect-ratio buckets, the rule of kohya's BucketManager (docs/determinism.md has it in words): training sizes of
// about the same area, and for each picture the one whose aspect ratio is nearest. Sizes alone, no pixels.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/image_transform.h"

namespace lorashard {

/// kohya's words and defaults. Requires: min_bucket_reso and max_bucket_reso are multiples of bucket_reso_steps, and
/// min_bucket_reso <= resolution <= max_bucket_reso.
struct BucketOptions {
  int64_t resolution = 512;                               ///< its square is the area that no bucket exceeds
  int64_t min_bucket_reso = 256, max_bucket_reso = 1024;  ///< of both sides; not with bucket_no_upscale
  int64_t bucket_reso_steps = 64;                         ///< sides are multiples of it
  bool bucket_no_upscale = false;  ///< a bucket is made of each picture's own size, which is only ever made smaller
};

/// Immutable, thread-safe.
class BucketManager {
 public:
  explicit BucketManager(const BucketOptions& options);

  /// The sizes to choose from without bucket_no_upscale, by width, then height.
  const std::vector<ImageSize>& resolutions() const { return resolutions_; }
  /// How a picture of `size` is framed: `cropped` is its bucket. With bucket_no_upscale Error(bad_data), naming `name`,
  /// for a picture that leaves less than one step of a side.
  Framing select_bucket(ImageSize size, const std::string& name) const;
  const BucketOptions& options() const { return options_; }

 private:
  Framing shrink(ImageSize size, const std::string& name) const;

  BucketOptions options_;
  std::vector<ImageSize> resolutions_;
};

/// Resized, larger or smaller, so that it just covers `bucket`: how select_bucket() frames pictures without
/// bucket_no_upscale, and how a class image is framed in the bucket of its micro-batch.
Framing covering(ImageSize size, ImageSize bucket);

}  // namespace lorashard
