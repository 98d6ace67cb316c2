// What the VAE makes of each picture, kept on disk: the moments (mean, logvar) of a pack's pictures at their training
// size, with random_flip of the flipped one too. Needs center_crop: a picture then has one crop. The sample drawn from
// the moments still differs from step to step. Made by all ranks together at the first start, by the arithmetic of a
// training step one picture a call, so that training with and without it has the same bits. Called by the Trainer.
#pragma once
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "data/bucket_sampler.h"
#include "data/image_transform.h"
#include "data/pack.h"
#include "data/tensor_store.h"
#include "dist/communicator.h"
#include "models/stable_diffusion.h"

namespace lorashard {

/// Pictures that are kept in one size.
struct LatentGroup {
  ImageSize size;
  std::vector<int64_t> rows;  ///< of the pack, ascending
  std::function<Framing(int64_t row)> framing;
  std::string framed_by;  ///< what the framing follows from, beside the transform; part of the group's identity
};

/// Rows [0, num_rows) as squares of `resolution`.
std::vector<LatentGroup> square_latents(const Pack& pack, int64_t num_rows, int64_t resolution);
/// The rows of each bucket, framed by `manager`, which must outlive the groups.
std::vector<LatentGroup> bucket_latents(const Pack& pack, const BucketManager& manager,
                                        const std::vector<Bucket>& buckets);
/// Class images: rows [0, num_rows) in the size of every bucket, since each may come beside any.
std::vector<LatentGroup> class_latents(const Pack& pack, int64_t num_rows, const std::vector<Bucket>& buckets);

struct LatentCacheOptions {
  std::filesystem::path folder;  ///< of all caches
  std::string base_hash;
  std::string arithmetic;      ///< what else the bits depend on: processor, threads, device
  TransformOptions transform;  ///< center_crop must be set
};

/// A store for each group, in `folder`/latents-HASH: place p of its rows is row p of the store, or with random_flip
/// rows 2p and 2p + 1 (flipped): fp32 [2 * latent_channels, h, w].
class LatentCache {
 public:
  /// Opens the stores, after making what is missing of them. Collective. Throws what share_work() and TensorStore
  /// throw, on every rank.
  LatentCache(Communicator& communicator, const Pack& pack, const StableDiffusion& base,
              const LatentCacheOptions& options, std::vector<LatentGroup> groups);

  /// The moments of a row of the pack, cropped and flipped as `picture` says. Thread-safe.
  void read(int64_t row, const TransformedImage& picture, float* out) const;

 private:
  bool both_sides_;
  std::vector<LatentGroup> groups_;
  std::vector<TensorStore> stores_;                              // of the groups
  std::map<std::pair<int64_t, int64_t>, size_t> group_of_size_;  // height, width
};

}  // namespace lorashard
