#include "trainer/latent_cache.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "data/shared_store.h"
#include "dist/error.h"
#include "dist/sha256.h"
#include "trainer/conditioning.h"

namespace lorashard {
namespace {

/// Everything a row of the group follows from.
std::string identity_of(const Pack& pack, const StableDiffusion& base, const LatentCacheOptions& options,
                        const LatentGroup& group) {
  const TransformOptions& transform = options.transform;
  return sha256(fmt::format("latents 1\n{}\n{}\n{}\n{}\n{} {} {} {}\n{}", pack.hash(), options.base_hash,
                            options.arithmetic, at::toString(base.vae_dtype), transform.resolution,
                            static_cast<int>(transform.interpolation), transform.random_flip,
                            transform.flip_before_crop, group.framed_by));
}

std::vector<int64_t> rows_up_to(int64_t num_rows) {
  std::vector<int64_t> rows(static_cast<size_t>(num_rows));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  return rows;
}

/// The rows of one shard of a group's store, one picture at a time.
class ShardMaker {
 public:
  ShardMaker(const Pack& pack, const StableDiffusion& base, const TransformOptions& transform)
      : pack_(pack), base_(base), transform_(transform) {}

  /// Encodes the next row of `shard`; writes the shard and returns true when that was the last.
  bool advance(const LatentGroup& group, const TensorStore& store, int64_t shard) {
    const auto bytes = static_cast<size_t>(store.row_bytes());
    const int64_t row = store.first_row(shard) + static_cast<int64_t>(rows_.size() / bytes);
    const at::Tensor moments =
        encode(group, transform_.random_flip ? row / 2 : row, transform_.random_flip && row % 2 == 1);
    LORASHARD_CHECK(moments.nbytes() == bytes, "{} bytes of moments in rows of {}", moments.nbytes(), bytes);
    const auto* data = static_cast<const uint8_t*>(moments.const_data_ptr());
    rows_.insert(rows_.end(), data, data + bytes);
    if (rows_.size() < static_cast<size_t>(store.rows_of(shard)) * bytes) return false;
    store.write(shard, rows_);
    rows_.clear();
    return true;
  }

 private:
  at::Tensor encode(const LatentGroup& group, int64_t place, bool flipped) const {
    const int64_t row = group.rows[static_cast<size_t>(place)];
    at::Tensor pixel_values = at::empty({1, 3, group.size.height, group.size.width}, at::kFloat);
    const Image image = decode_image(pack_.read_image(row), pack_.file_name(row));
    TransformedImage plan =
        plan_transform({image.height, image.width}, group.framing(row), transform_, /*seed=*/0, /*slot=*/0,
                       /*class_image=*/false);
    plan.flipped = flipped;
    apply_transform(image, transform_.interpolation, plan, pixel_values[0]);
    return encode_moments(base_, pixel_values.to(base_.device), /*deterministic=*/true).cpu().contiguous();
  }

  const Pack& pack_;
  const StableDiffusion& base_;
  const TransformOptions& transform_;
  std::vector<uint8_t> rows_;
};

}  // namespace

std::vector<LatentGroup> square_latents(const Pack& pack, int64_t num_rows, int64_t resolution) {
  return {{.size = {resolution, resolution},
           .rows = rows_up_to(num_rows),
           .framing = [&pack, resolution](int64_t row) { return square_framing(pack.size(row), resolution); },
           .framed_by = ""}};
}

std::vector<LatentGroup> bucket_latents(const Pack& pack, const BucketManager& manager,
                                        const std::vector<Bucket>& buckets) {
  const BucketOptions& options = manager.options();
  std::vector<LatentGroup> groups;
  for (const Bucket& bucket : buckets) {
    std::vector<int64_t> rows = bucket.rows;
    rows.erase(std::unique(rows.begin(), rows.end()), rows.end());  // repeats are beside each other
    groups.push_back(
        {.size = bucket.size,
         .rows = std::move(rows),
         .framing = [&pack,
                     &manager](int64_t row) { return manager.select_bucket(pack.size(row), pack.file_name(row)); },
         .framed_by =
             fmt::format("bucket {}x{} {} {} {} {}\n", bucket.size.width, bucket.size.height, options.min_bucket_reso,
                         options.max_bucket_reso, options.bucket_reso_steps, options.bucket_no_upscale)});
  }
  return groups;
}

std::vector<LatentGroup> class_latents(const Pack& pack, int64_t num_rows, const std::vector<Bucket>& buckets) {
  std::vector<LatentGroup> groups;
  for (const Bucket& bucket : buckets) {
    groups.push_back({.size = bucket.size,
                      .rows = rows_up_to(num_rows),
                      .framing = [&pack, size = bucket.size](int64_t row) { return covering(pack.size(row), size); },
                      .framed_by = fmt::format("covering {}x{}\n", bucket.size.width, bucket.size.height)});
  }
  return groups;
}

LatentCache::LatentCache(Communicator& communicator, const Pack& pack, const StableDiffusion& base,
                         const LatentCacheOptions& options, std::vector<LatentGroup> groups)
    : both_sides_(options.transform.random_flip), groups_(std::move(groups)) {
  LORASHARD_CHECK(options.transform.center_crop && !groups_.empty(), "a latent cache of {} sizes", groups_.size());
  const int64_t pixels = base.vae_scale_factor(), channels = 2 * base.vae->config().latent_channels;
  int64_t num_pictures = 0;
  for (const LatentGroup& group : groups_) {
    const std::string identity = identity_of(pack, base, options, group);
    const auto num_rows = static_cast<int64_t>(group.rows.size());
    stores_.emplace_back(
        options.folder / ("latents-" + identity.substr(0, 16)), identity, num_rows * (both_sides_ ? 2 : 1),
        channels * (group.size.height / pixels) * (group.size.width / pixels) * int64_t{sizeof(float)});
    group_of_size_.emplace(std::pair(group.size.height, group.size.width), stores_.size() - 1);
    num_pictures += num_rows;
  }
  const std::string sizes = groups_.size() == 1 ? "" : fmt::format(" of {} sizes", groups_.size());
  ShardMaker maker(pack, base, options.transform);
  open_shared_stores(communicator, stores_,
                     {.contents = "cached latents",
                      .making = "encoding the pictures",
                      .announce = fmt::format("caching the latents of {} pictures{}", num_pictures, sizes)},
                     [&](const TensorStore& store, int64_t shard) {
                       return maker.advance(groups_[static_cast<size_t>(&store - stores_.data())], store, shard);
                     });
}

void LatentCache::read(int64_t row, const TransformedImage& picture, float* out) const {
  const ImageSize& size = picture.framing.cropped;
  const auto group = group_of_size_.find({size.height, size.width});
  LORASHARD_CHECK(group != group_of_size_.end(), "no latents of {} x {} pixels are cached", size.width, size.height);
  const std::vector<int64_t>& rows = groups_[group->second].rows;
  const auto found = std::lower_bound(rows.begin(), rows.end(), row);
  LORASHARD_CHECK(found != rows.end() && *found == row, "row {} is in no cache of {} x {} pixels", row, size.width,
                  size.height);
  const int64_t place = found - rows.begin();
  stores_[group->second].read_row(both_sides_ ? 2 * place + (picture.flipped ? 1 : 0) : place, out);
}

}  // namespace lorashard
