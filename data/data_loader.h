// Threads that make batches ahead of the training step: read, decode, resize, crop, flip, tokenize, and draw every
// random number of the micro-batch. What a batch holds depends on its number alone, not on threads, ranks or timing.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "data/image_transform.h"
#include "data/pack.h"
#include "data/sampler.h"

namespace lorashard {

struct Batch {
  int64_t micro_batch = 0;              ///< its number m in the run
  std::vector<uint64_t> slots;          ///< [B]
  std::vector<int64_t> sample_ids;      ///< [B] rows of the pack
  std::vector<std::string> captions;    ///< [B]
  std::vector<TransformedImage> images; ///< [B] sizes and crops
  at::Tensor pixel_values;              ///< fp32 [B, 3, H, W] in [-1, 1]
  at::Tensor input_ids;                 ///< int64 [B, 77]
  at::Tensor input_ids_2;               ///< SDXL: int64 [B, 77] of its second tokenizer; otherwise undefined
  at::Tensor vae_noise;                 ///< fp32 [B, 4, H/8, W/8], standard normal: the VAE's sample
  at::Tensor noise;                     ///< fp32 [B, 4, H/8, W/8], standard normal
  at::Tensor timesteps;                 ///< int64 [B] in [0, num_train_timesteps)
  double wait_ms = 0;                   ///< how long next() waited for it
};

struct DataLoaderOptions {
  uint64_t seed = 0;
  int64_t num_samples = 0;  ///< rows [0, num_samples) of the pack are trained on; 0: all
  int64_t train_batch_size = 1;
  int num_workers = 2;      ///< threads; 0 makes each batch inside next()
  int prefetch_batches = 4; ///< at most this many ready or in the making, so memory stays flat
  TransformOptions transform;
  int64_t latent_channels = 4;
  int64_t latent_height = 64, latent_width = 64;
  int64_t num_train_timesteps = 1000;
  double caption_dropout = 0;  ///< probability that a caption becomes ""
  /// Captions to input_ids and input_ids_2 [B, length]; called from the loader's threads. Empty: undefined.
  std::function<at::Tensor(const std::vector<std::string>&)> tokenize, tokenize_2;
};

class DataLoader {
 public:
  /// `pack` must outlive the loader.
  DataLoader(const Pack& pack, const DataLoaderOptions& options, MicroBatchSchedule schedule);
  ~DataLoader();  ///< stops the threads, also in the middle of a run

  /// The next micro-batch of the schedule, in order. Throws the Error of the worker that failed on it (naming the
  /// shard and sample). Must not be called past the schedule's end.
  Batch next();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
