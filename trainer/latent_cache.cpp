#include "trainer/latent_cache.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cstring>
#include <vector>

#include "data/shared_store.h"
#include "dist/error.h"
#include "dist/sha256.h"
#include "trainer/conditioning.h"

namespace lorashard {
namespace {

/// Everything a row follows from.
std::string identity_of(const Pack& pack, const StableDiffusion& base, const LatentCacheOptions& options) {
  const TransformOptions& transform = options.transform;
  return sha256(fmt::format("latents 1\n{}\n{}\n{}\n{}\n{} {} {} {}\n", pack.hash(), options.base_hash, options.arithmetic,
                            at::toString(base.vae_dtype), transform.resolution, static_cast<int>(transform.interpolation),
                            transform.random_flip, transform.flip_before_crop));
}

/// The rows of one shard, one picture at a time.
class ShardMaker {
 public:
  ShardMaker(const Pack& pack, const StableDiffusion& base, const TransformOptions& transform, const TensorStore& store)
      : pack_(pack), base_(base), transform_(transform), store_(store) {}

  /// Encodes the next row of `shard`; writes the shard and returns true when that was the last.
  bool advance(int64_t shard) {
    const auto bytes = static_cast<size_t>(store_.row_bytes());
    const int64_t row = store_.first_row(shard) + static_cast<int64_t>(rows_.size() / bytes);
    const at::Tensor moments = encode(transform_.random_flip ? row / 2 : row, transform_.random_flip && row % 2 == 1);
    LORASHARD_CHECK(moments.nbytes() == bytes, "{} bytes of moments in rows of {}", moments.nbytes(), bytes);
    const auto* data = static_cast<const uint8_t*>(moments.const_data_ptr());
    rows_.insert(rows_.end(), data, data + bytes);
    if (rows_.size() < static_cast<size_t>(store_.rows_of(shard)) * bytes) return false;
    store_.write(shard, rows_);
    rows_.clear();
    return true;
  }

 private:
  at::Tensor encode(int64_t row, bool flipped) const {
    const int64_t side = transform_.resolution;
    at::Tensor pixel_values = at::empty({1, 3, side, side}, at::kFloat);
    const Image image = decode_image(pack_.read_image(row), pack_.file_name(row));
    TransformedImage plan = plan_transform({image.height, image.width}, transform_, /*seed=*/0, /*slot=*/0, /*class_image=*/false);
    plan.flipped = flipped;
    apply_transform(image, transform_, plan, pixel_values[0]);
    return encode_moments(base_, pixel_values.to(base_.device), /*deterministic=*/true).cpu().contiguous();
  }

  const Pack& pack_;
  const StableDiffusion& base_;
  const TransformOptions& transform_;
  const TensorStore& store_;
  std::vector<uint8_t> rows_;
};

}  // namespace

std::unique_ptr<TensorStore> open_latent_cache(Communicator& communicator, const Pack& pack, const StableDiffusion& base,
                                               const LatentCacheOptions& options) {
  LORASHARD_CHECK(options.transform.center_crop, "a latent cache without center_crop");
  const std::string identity = identity_of(pack, base, options);
  const int64_t side = options.transform.resolution / base.vae_scale_factor(), channels = 2 * base.vae->config().latent_channels;
  const int64_t encodings = options.transform.random_flip ? 2 : 1;
  auto store = std::make_unique<TensorStore>(options.folder / ("latents-" + identity.substr(0, 16)), identity,
                                             options.num_rows * encodings, channels * side * side * int64_t{sizeof(float)});
  ShardMaker maker(pack, base, options.transform, *store);
  open_shared_store(communicator, *store,
                    {.contents = "cached latents",
                     .making = "encoding the pictures",
                     .announce = fmt::format("caching the latents of {} pictures", options.num_rows)},
                    [&](int64_t shard) { return maker.advance(shard); });
  return store;
}

}  // namespace lorashard
