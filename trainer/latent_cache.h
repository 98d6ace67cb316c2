// What the VAE makes of each picture, kept on disk: the moments (mean, logvar) of a pack's pictures at the recipe's resolution, with
// random_flip of the flipped one too. Needs center_crop: a picture then has one crop. The sample drawn from the moments still differs
// from step to step. Made by all ranks together at the first start, by the arithmetic of a training step one picture a call, so that
// training with and without it has the same bits. Called by the Trainer.
#pragma once
#include <filesystem>
#include <memory>
#include <string>

#include "data/image_transform.h"
#include "data/pack.h"
#include "data/tensor_store.h"
#include "dist/communicator.h"
#include "models/stable_diffusion.h"

namespace lorashard {

struct LatentCacheOptions {
  std::filesystem::path folder;   ///< of all caches
  std::string base_hash;
  std::string arithmetic;         ///< what else the bits depend on: processor, threads, device
  TransformOptions transform;     ///< center_crop must be set
  int64_t num_rows = 0;           ///< rows [0, num_rows) of the pack
};

/// Opens `folder`/latents-HASH, after making what is missing of it. Row r of the pack is row r of the store, or with random_flip rows 2r
/// and 2r + 1 (flipped): fp32 [2 * latent_channels, h, w]. Collective. Throws what share_work() and TensorStore throw, on every rank.
std::unique_ptr<TensorStore> open_latent_cache(Communicator& communicator, const Pack& pack, const StableDiffusion& base,
                                               const LatentCacheOptions& options);

}  // namespace lorashard
