// How a Trainer is built: pack, checkpoint, recipe, base, adapter, state, loader, in this order.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "dist/agreement.h"
#include "dist/compute_device.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/machine.h"
#include "models/state_dict.h"
#include "trainer/checkpoint.h"
#include "trainer/class_pictures.h"
#include "trainer/first_use_pack.h"
#include "trainer/held_out_loss.h"
#include "trainer/lora_setup.h"
#include "trainer/make_optimizer.h"
#include "trainer/parameter_groups.h"
#include "trainer/preflight.h"
#include "trainer/recipe_options.h"
#include "trainer/resume.h"
#include "trainer/trainer.h"

namespace lorashard {

Trainer::Trainer(Recipe recipe, Communicator& communicator, at::Device device)
    : recipe_(std::move(recipe)),
      communicator_(communicator),
      device_(device),
      output_dir_(recipe_.output_dir),
      loss_scale_(recipe_.train.mixed_precision == "fp16", static_cast<double>(recipe_.train.initial_loss_scale),
                  recipe_.train.loss_scale_growth_interval) {
  require_same(communicator_, "the recipe", print_recipe(recipe_));
  if (recipe_.train.deterministic) {
    require_same(communicator_, "the processor", describe_arithmetic(),
                 "deterministic = true needs processors of one kind: use such hosts only (Slurm: --sbatch=--constraint=...), or "
                 "train.deterministic = false");
  }
  run_agreed(communicator_, "starting the training", [&] {
    if (!is_main()) return;
    prepare_output_dir(output_dir_);
    lease_ = std::make_unique<RunLease>(output_dir_);
    // The start before may live, cut off: a checkpoint that appears after we looked for the newest one would be of steps that we do again.
    discard_unfinished_checkpoints(output_dir_);
  });
  open_pack();
  find_checkpoint();
  resolve();
  run_agreed(communicator_, "loading the base model", [&] { load_base(); });
  require_same(communicator_, "the base model", base_hash_);
  open_class_pack();
  open_caches();
  run_agreed(communicator_, "building the adapter", [&] {
    inject_lora();
    restore();
  });
  run_agreed(communicator_, "reading the validation settings", [&] {
    if (recipe_.validation.validation_prompt.texts.empty()) return;
    validation_ = std::make_unique<Validation>(recipe_, base_, adapter_, communicator_, images_per_epoch_);
  });
  run_agreed(communicator_, "opening the run directory", [&] {
    if (!is_main()) return;
    lease_->require_held();  // loading may have taken long
    write_durably(output_dir_ / "recipe.toml", print_recipe(recipe_));
    metrics_ = std::make_unique<Metrics>(output_dir_, recipe_.report.report_to, recipe_.report.logging_dir, global_step_,
                                         *recipe_.train.max_train_steps);
    make_checkpoint_writer();
  });
  start_loader();
}

std::unique_ptr<Pack> Trainer::open_pictures(const PictureSource& source) {
  std::filesystem::path folder = source.folder;
  bool packed = false;
  run_agreed(communicator_, "opening the training data", [&] { packed = is_packed(source); });
  if (!packed) {
    folder = source.pack;
    run_agreed(communicator_, "packing the training data", [&] {
      if (is_main()) pack_on_first_use(source);
    });
  }
  std::unique_ptr<Pack> pack;
  run_agreed(communicator_, "opening the training data", [&] { pack = std::make_unique<Pack>(folder); });
  require_same(communicator_, "the pack", pack->hash());
  return pack;
}

void Trainer::open_pack() {
  pack_ = open_pictures(training_pictures(recipe_));
  run_agreed(communicator_, "opening the training data", [&] { require_custom_prompts(recipe_, *pack_); });
  run_agreed(communicator_, "opening the training data", [&] {
    held_out_rows_ = held_out_rows(recipe_, *pack_);
    num_samples_ = num_train_samples(recipe_, *pack_);
  });
  if (is_main() && has_no_captions(recipe_, *pack_)) {
    log::warning("no picture of '{}' has a caption: every prompt will be empty (lorashard pack --help says where captions come from)",
                 recipe_.data.train_data_dir);
  }
  if (const auto options = bucket_options(recipe_)) {
    bucket_manager_.emplace(*options);
    run_agreed(communicator_, "sorting the pictures into buckets", [&] { buckets_ = train_buckets(recipe_, *pack_); });
    const int64_t batch = recipe_.train.train_batch_size, micro_batches = micro_batches_per_epoch(buckets_, batch);
    log::info("buckets: {}; {} micro-batches of {} an epoch", describe(buckets_), micro_batches, batch);
    if (const std::string small = describe_small_buckets(buckets_, batch); !small.empty()) log::warning("{}", small);
  }
  images_per_epoch_ = images_per_epoch(recipe_, num_samples_, buckets_);
}

void Trainer::open_class_pack() {
  if (!recipe_.dreambooth.with_prior_preservation) return;
  const PictureSource source = class_pictures(recipe_);
  bool packed = false;
  run_agreed(communicator_, "opening the class pictures", [&] { packed = is_pack(source.folder) || is_pack(source.pack); });
  if (!packed) make_class_pictures(communicator_, recipe_, base_, base_hash_);
  class_pack_ = open_pictures(source);
  run_agreed(communicator_, "opening the training data", [&] { require_class_images(recipe_, *class_pack_); });
}

void Trainer::find_checkpoint() {
  std::string found;
  run_agreed(communicator_, "looking for a checkpoint", [&] {
    if (is_main()) found = checkpoint_to_resume(recipe_).value_or("").string();
  });
  checkpoint_ = communicator_.all_gather(found)[0];
  if (checkpoint_.empty()) return;
  run_agreed(communicator_, "reading the checkpoint", [&] { resumed_ = read_checkpoint(checkpoint_); });
}

void Trainer::resolve() {
  const World& world = communicator_.world();
  run_agreed(communicator_, "resolving the recipe", [&] {
    if (resumed_) adopt_resolved_values(recipe_, *resumed_);
    resolve_recipe(recipe_, world.world_size, world.local_world_size, images_per_epoch_);
    resolve_lora_weights(recipe_);
  });
  require_same(communicator_, "the adapter to start from", recipe_.lora.lora_weights_sha256);
  at::set_num_threads(static_cast<int>(recipe_.distributed.threads_per_rank));
  num_micro_batches_ = micro_batches_of(recipe_);
  if (world.world_size > num_micro_batches_) {
    log::info("{} of the {} ranks have nothing to do: a step has only {} micro-batches (total_batch_size {} / train_batch_size {})",
              world.world_size - num_micro_batches_, world.world_size, num_micro_batches_, *recipe_.train.total_batch_size,
              recipe_.train.train_batch_size);
  }
}

void Trainer::load_base() {
  const StableDiffusionOptions options = base_options(recipe_, device_);
  base_ = load_stable_diffusion(recipe_.model.pretrained_model_name_or_path, options);
  base_hash_ = base_model_hash(recipe_.model.pretrained_model_name_or_path, options);
  require_resolution_fits(recipe_, base_);
  if (recipe_.train.gradient_checkpointing) {
    base_.unet->enable_gradient_checkpointing();
    if (recipe_.lora.train_text_encoder) base_.text_encoder->enable_gradient_checkpointing();
    if (recipe_.lora.train_text_encoder && base_.is_sdxl()) base_.text_encoder_2->enable_gradient_checkpointing();
  }
  loss_options_ = loss_options(recipe_, base_.noise_scheduler->config());
  const TimestepDistribution check(timestep_options(recipe_, base_.noise_scheduler->config().num_train_timesteps));
}

void Trainer::open_caches() {
  const Recipe::Data& data = recipe_.data;
  const std::filesystem::path folder = data.cache_dir.empty() ? output_dir_ / "cache" : std::filesystem::path(data.cache_dir);
  // Where bits matter, those made by another kind of processor don't count.
  const std::string arithmetic =
      recipe_.train.deterministic
          ? fmt::format("{}{} threads", describe_arithmetic_of(device_), recipe_.distributed.threads_per_rank)
          : "";
  const DataLoaderOptions options = loader_options();
  if (data.cache_latents) {
    const int64_t side = data.resolution;
    // With held-out pictures those beyond max_train_samples may be asked for too.
    const int64_t num_rows = held_out_rows_.empty() ? std::min(pack_->num_samples(), num_samples_) : pack_->num_samples();
    const auto open = [&](const Pack& pack, std::vector<LatentGroup> groups) {
      const LatentCacheOptions cache{
          .folder = folder, .base_hash = base_hash_, .arithmetic = arithmetic, .transform = options.transform};
      return std::make_unique<LatentCache>(communicator_, pack, base_, cache, std::move(groups));
    };
    latents_ = open(*pack_, bucket_manager_ ? bucket_latents(*pack_, *bucket_manager_, buckets_)
                                            : square_latents(*pack_, num_rows, side));
    if (class_pack_) {
      const int64_t num_class_rows = recipe_.dreambooth.num_class_images;
      class_latents_ = open(*class_pack_, bucket_manager_ ? class_latents(*class_pack_, num_class_rows, buckets_)
                                                          : square_latents(*class_pack_, num_class_rows, side));
    }
  }
  if (data.cache_text_embeddings) {
    texts_ = std::make_unique<TextCache>(communicator_, base_, texts_of(*pack_, options),
                                         TextCacheOptions{.folder = folder, .base_hash = base_hash_, .arithmetic = arithmetic});
  }
  // Validation still needs all of them.
  if (!recipe_.validation.validation_prompt.texts.empty()) return;
  if (latents_) release_weights(*base_.vae);
  if (!texts_ || changes_captions(options.captions)) return;
  release_weights(*base_.text_encoder);
  if (base_.is_sdxl()) release_weights(*base_.text_encoder_2);
}

void Trainer::inject_lora() {
  make_adapter(recipe_, base_, adapter_);
  if (!recipe_.lora.lora_weights.empty() && !resumed_) start_from_adapter(recipe_, base_, adapter_);
  adapter_.to(device_);
  log::info("adapter: {} layers, {} parameters", adapter_.modules().size(), adapter_.num_parameters());
}

void Trainer::make_updates() {
  optimizer_ = make_optimizer(recipe_.optimizer, adapter_.flat_parameters(), parameter_groups(adapter_, recipe_.optimizer));
  if (recipe_.ema.use_ema) ema_ = std::make_unique<Ema>(adapter_.flat_parameters(), recipe_.ema);
  if (!is_main()) return;
  for (const std::string& warning : optimizer_warnings(recipe_.optimizer)) log::warning("{}", warning);
}

void Trainer::restore() {
  make_updates();
  reduction_ = std::make_unique<GradientReduction>(adapter_.num_parameters(), num_micro_batches_, recipe_.train.deterministic,
                                                   device_);
  if (resumed_) {
    require_same_run(recipe_, data_hash(*pack_, class_pack_.get()), base_hash_, *resumed_, checkpoint_);
    if (is_main()) require_same_hardware(recipe_, describe_arithmetic_of(device_), *resumed_, checkpoint_);
    LORASHARD_CHECK(resumed_->parameters.numel() == adapter_.num_parameters(), "{} parameters in '{}', {} in the model",
                    resumed_->parameters.numel(), checkpoint_, adapter_.num_parameters());
    at::NoGradGuard no_grad;
    adapter_.flat_parameters().copy_(resumed_->parameters);
    optimizer_->load(resumed_->parts.part("optimizer"), resumed_->updates);
    if (ema_) ema_->load(resumed_->parts.part("ema"));
    skipped_in_a_row_ = resumed_->skipped_in_a_row;
    if (loss_scale_.dynamic()) loss_scale_.load(resumed_->parts.part("loss_scale"));
    global_step_ = resumed_->global_step;
    log::info("going on from '{}' at step {}", checkpoint_, global_step_);
  }
  trace_ = std::make_unique<Trace>(global_step_, recipe_.debug.trace_steps);
  trace_->init(adapter_);
}

DataLoaderOptions Trainer::loader_options() const {
  DataLoaderOptions options;
  options.seed = static_cast<uint64_t>(recipe_.seed);
  options.num_samples = num_samples_;
  options.held_out_rows = held_out_rows_;
  options.train_batch_size = recipe_.train.train_batch_size;
  options.num_workers = static_cast<int>(recipe_.data.dataloader_num_workers);
  options.prefetch_batches = std::max(4, 2 * options.num_workers);
  options.transform = {.resolution = recipe_.data.resolution,
                       .center_crop = recipe_.data.center_crop,
                       .random_flip = recipe_.data.random_flip,
                       .flip_before_crop = base_.is_sdxl(),
                       .interpolation = parse_interpolation(recipe_.data.image_interpolation_mode)};
  options.buckets = bucket_options(recipe_);
  options.own_captions = recipe_.task != "dreambooth" || recipe_.dreambooth.custom_instance_prompts;
  options.instance_prompt = recipe_.dreambooth.instance_prompt;
  options.class_images = {.pack = class_pack_.get(),
                          .num_class_images = recipe_.dreambooth.num_class_images,
                          .class_prompt = recipe_.dreambooth.class_prompt};
  options.latent_channels = base_.vae->config().latent_channels;
  options.vae_scale_factor = base_.vae_scale_factor();
  options.timesteps = timestep_options(recipe_, base_.noise_scheduler->config().num_train_timesteps);
  options.captions = caption_options(recipe_);
  options.loss_masks = loss_options_.masked_loss;
  options.multires_noise = {.iterations = recipe_.noise.multires_noise_iterations, .discount = recipe_.noise.multires_noise_discount};
  options.draw_noise_offset = recipe_.train.noise_offset != 0;
  options.draw_input_perturbation = recipe_.train.input_perturbation != 0;
  options.noise_offset_random_strength = recipe_.noise.noise_offset_random_strength;
  options.input_perturbation_random_strength = recipe_.noise.input_perturbation_random_strength;
  options.tokenize = [tokenizer = base_.tokenizer](const std::vector<std::string>& captions) { return (*tokenizer)(captions); };
  if (base_.is_sdxl()) {
    options.tokenize_2 = [tokenizer = base_.tokenizer_2](const std::vector<std::string>& captions) { return (*tokenizer)(captions); };
  }
  if (latents_) {
    options.read_moments = [this](bool class_image, int64_t row, const TransformedImage& picture, float* out) {
      (class_image ? class_latents_ : latents_)->read(row, picture, out);
    };
  }
  return options;
}

void Trainer::start_loader() {
  const World& world = communicator_.world();
  const DataLoaderOptions options = loader_options();
  const MicroBatchSchedule schedule(num_micro_batches_, world.rank, world.world_size, global_step_, *recipe_.train.max_train_steps);
  micro_batches_per_step_ = schedule.per_step();
  loader_ = std::make_unique<DataLoader>(*pack_, options, schedule);
  feed_ = std::make_unique<BatchFeed>(*loader_, schedule.size(), device_);
}

}  // namespace lorashard
