// Threads that make batches ahead of the training step: read, decode, resize, crop, flip, tokenize, and draw every
// random number of the micro-batch. What a batch holds depends on its number alone, not on threads, ranks or timing.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/bucket_manager.h"
#include "data/captions.h"
#include "data/image_transform.h"
#include "data/multires_noise.h"
#include "data/pack.h"
#include "data/sampler.h"
#include "data/timestep_distribution.h"

namespace lorashard {

/// With prior preservation the B class images stand behind the B instance images, [instance..., class...], in everything that
/// is [R]: R = 2B. Otherwise R = B. All pictures have one size H x W: the recipe's resolution, or the bucket of the
/// micro-batch; h and w are those of latents.
struct Batch {
  int64_t micro_batch = 0;              ///< its number m in the run
  std::vector<uint64_t> slots;          ///< [B]; the class image of a row has its slot
  std::vector<int64_t> sample_ids;      ///< [B] rows of the pack
  std::vector<int64_t> class_sample_ids;  ///< [B] rows of the class pack, or empty
  std::vector<std::string> captions;    ///< [R] as slot_caption() gives them
  std::vector<TransformedImage> images; ///< [R] sizes and crops
  at::Tensor pixel_values;              ///< fp32 [R, 3, H, W] in [-1, 1]; undefined where `moments` is there instead
  at::Tensor moments;                   ///< fp32 [R, 8, h, w], the VAE's of these pictures, read from a cache; or undefined
  at::Tensor input_ids;                 ///< int64 [R, 77]
  at::Tensor input_ids_2;               ///< SDXL: int64 [R, 77] of its second tokenizer; otherwise undefined
  at::Tensor vae_noise;                 ///< fp32 [R, 4, h, w], standard normal: the VAE's sample
  at::Tensor noise;                     ///< fp32 [R, 4, h, w], standard normal, with multires_noise
  at::Tensor timesteps;                 ///< int64 [R] in [0, num_train_timesteps)
  at::Tensor noise_offset;              ///< fp32 [R, 4, 1, 1], standard normal; undefined unless drawn
  at::Tensor input_perturbation;        ///< fp32 [R, 4, h, w], standard normal; undefined unless drawn
  at::Tensor loss_mask;                 ///< fp32 [R, 1, h, w] in [0, 1]; undefined unless asked for
  at::Tensor loss_weights;              ///< fp32 [R] of the rows; undefined where the pack has none
  double wait_ms = 0;                   ///< how long next() waited for it
};

/// Every tensor of a batch that is there: what a GPU needs of it.
std::vector<at::Tensor*> tensors_of(Batch& batch);

/// Prior preservation: one class image beside each instance image.
struct ClassImages {
  const Pack* pack = nullptr;  ///< null: none. Must outlive the loader
  int64_t num_class_images = 0;  ///< rows [0, num_class_images) of it are used; 0: all
  std::string class_prompt;      ///< the caption of each
};

struct DataLoaderOptions {
  uint64_t seed = 0;
  int64_t num_samples = 0;  ///< images in an epoch, from the pack's first row on, each by its repeats; 0: all
  std::vector<int64_t> held_out_rows;  ///< of the pack: they are in no epoch
  int64_t train_batch_size = 1;
  int num_workers = 2;      ///< threads; 0 makes each batch inside next()
  int prefetch_batches = 4; ///< at most this many ready or in the making, so memory stays flat
  TransformOptions transform;
  /// Pictures keep their aspect ratio: each micro-batch is of one bucket, and the class images beside it are cropped to that size.
  std::optional<BucketOptions> buckets;
  int64_t latent_channels = 4;
  int64_t vae_scale_factor = 8;  ///< pixels along the side of a latent
  bool own_captions = true;    ///< false: instance_prompt is the caption of every row of the pack
  std::string instance_prompt;  ///< the caption of rows that have none of their own
  ClassImages class_images;
  TimestepOptions timesteps;
  CaptionOptions captions;
  bool loss_masks = false;  ///< read the masks of the rows
  MultiresNoiseOptions multires_noise;
  bool draw_noise_offset = false, draw_input_perturbation = false;
  /// Each image's noise_offset or input_perturbation is times a uniform number of its own.
  bool noise_offset_random_strength = false, input_perturbation_random_strength = false;
  /// Copies the moments of a row of the pack (or of the class pack) to `out` instead of decoding the picture, which would be framed and
  /// flipped as `picture` says; called from the loader's threads. Empty: pictures are decoded.
  std::function<void(bool class_image, int64_t row, const TransformedImage& picture, float* out)> read_moments;
  /// Captions to input_ids and input_ids_2 [B, length]; called from the loader's threads. Empty: undefined.
  std::function<at::Tensor(const std::vector<std::string>&)> tokenize, tokenize_2;
};

/// The distinct texts, sorted, that the rows' captions give, "" among them: all a run trains on, unless its captions are shuffled or
/// drawn (then those of each row's first draw). What a cache of text embeddings is made of.
std::vector<std::string> texts_of(const Pack& pack, const DataLoaderOptions& options);

/// How often an epoch has each row of `pack`, 0 for those that are held out; empty: each once.
std::vector<int64_t> repeats_of(const Pack& pack, const std::vector<int64_t>& held_out_rows);

/// One row of the pack as it is whenever it is asked for, R = 1: cropped in the middle, not flipped, no caption or tag dropped, what else
/// is drawn of its caption drawn for slot = row; `vae_noise` is zero, so that its latents are the VAE's means. Noise and timesteps are
/// left undefined. Throws what DataLoader::next() throws.
Batch held_out_batch(const Pack& pack, const DataLoaderOptions& options, int64_t row);

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
