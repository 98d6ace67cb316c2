// A run: built in order from a recipe, then train(). Three files explain a run: launch/train.cpp, this one with its .cpp, and
// trainer/diffusion_loss.cpp.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/bucket_sampler.h"
#include "data/data_loader.h"
#include "data/pack.h"
#include "dist/agreement.h"
#include "dist/communicator.h"
#include "dist/reduction.h"
#include "models/lora.h"
#include "models/stable_diffusion.h"
#include "trainer/batch_feed.h"
#include "trainer/checkpoint.h"
#include "trainer/checkpoint_writer.h"
#include "trainer/ema.h"
#include "trainer/first_use_pack.h"
#include "trainer/latent_cache.h"
#include "trainer/loss_scale.h"
#include "trainer/loss_weights.h"
#include "trainer/metrics.h"
#include "trainer/optimizer.h"
#include "trainer/recipe.h"
#include "trainer/run_lease.h"
#include "trainer/text_cache.h"
#include "trainer/trace.h"
#include "trainer/validation.h"

namespace lorashard {

class Trainer {
 public:
  /// Opens the pack and the base, finds the checkpoint to resume from, and builds every part. Collective over `communicator`, which
  /// must outlive it and sums on `device`, where the training runs. Whatever can be known to be wrong before step 0 is thrown here, on
  /// every rank.
  Trainer(Recipe recipe, Communicator& communicator, at::Device device = at::kCPU);
  ~Trainer();

  /// Runs to max_train_steps; writes checkpoints, metrics, trace and at the end the adapter. Throws Error(stopped) after a
  /// checkpoint when a stop was requested, Error(non_finite) after 8 skipped steps in a row.
  void train();

 private:
  std::unique_ptr<Pack> open_pictures(const PictureSource& source);
  void open_pack();
  void open_class_pack();
  void find_checkpoint();
  void resolve();
  void load_base();
  DataLoaderOptions loader_options() const;
  /// Latents and text embeddings, where the recipe wants them cached; then the encoders that nothing needs any more are let go.
  void open_caches();
  void inject_lora();
  void make_updates();  // optimizer and average
  void restore();
  void start_loader();
  void make_checkpoint_writer();

  /// One optimizer step over all ranks: trainer.cpp, top to bottom.
  StepMetrics train_step(int64_t step);
  /// The loss on the held-out pictures, where this step has one and no request to stop ended it.
  std::optional<double> validation_loss();
  /// The values that are exported: the average's with use_ema, else the adapter's.
  const at::Tensor& exported_parameters(const TrainingState& state) const;
  /// The state as a checkpoint has it; its tensors are those of the training.
  TrainingState state() const;
  /// The writer's thread: checkpoint-N/ from a copy of the state.
  void save_checkpoint(const TrainingState& state);
  /// Until no checkpoint is being written; then throws on every rank what went wrong with any. Collective.
  void finish_checkpoints(bool must_be_written = false);
  /// The validation pictures of this step, where it has some. False on every rank when a request to stop ended them.
  bool validate();
  void write_trace();
  void refuse_if_diverged() const;
  AgreedError stopped_on_request(const std::string& where) const;
  bool is_main() const { return communicator_.world().rank == 0; }

  Recipe recipe_;
  Communicator& communicator_;
  const at::Device device_;
  std::filesystem::path output_dir_;
  std::unique_ptr<RunLease> lease_;  // rank 0; released last

  std::unique_ptr<Pack> pack_;
  std::unique_ptr<Pack> class_pack_;  // with prior preservation
  std::optional<TrainingState> resumed_;
  std::string checkpoint_;  // the folder resumed_ came from
  StableDiffusion base_;
  std::string base_hash_;
  LoraAdapter adapter_;
  LossOptions loss_options_;
  std::optional<BucketManager> bucket_manager_;  // with enable_bucket
  std::vector<Bucket> buckets_;
  std::unique_ptr<LatentCache> latents_, class_latents_;  // with cache_latents
  std::unique_ptr<TextCache> texts_;                      // with cache_text_embeddings

  int64_t num_micro_batches_ = 0;  // M of an optimizer step, over all ranks
  int64_t num_samples_ = 0;        // images of the pack that an epoch has
  std::vector<int64_t> held_out_rows_;  // of the pack, with validation_split
  int64_t images_per_epoch_ = 0;   // slots of it: more where buckets are filled up
  int64_t global_step_ = 0;
  int64_t skipped_in_a_row_ = 0;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<Ema> ema_;  // with use_ema
  std::unique_ptr<GradientReduction> reduction_;
  LossScale loss_scale_;
  std::unique_ptr<DataLoader> loader_;
  std::unique_ptr<BatchFeed> feed_;
  std::unique_ptr<Metrics> metrics_;  // rank 0
  std::unique_ptr<Trace> trace_;
  std::unique_ptr<Validation> validation_;
  int64_t micro_batches_per_step_ = 0;  // of this rank
  std::unique_ptr<CheckpointWriter> checkpoint_writer_;  // rank 0; its thread uses members above
};

}  // namespace lorashard
