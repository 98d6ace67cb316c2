// The rules between keys, and what a start fixes once: batch size over all ranks, length, learning rate, threads.
#include <fmt/core.h>

#include <algorithm>
#include <thread>

#include "dist/error.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

[[noreturn]] void refuse(const std::string& message, const std::string& hint) {
  throw Error(ErrorKind::usage, message, hint);
}

void require(const std::string& value, const std::string& key, const std::string& meaning, const std::string& name) {
  if (value.empty()) {
    refuse(fmt::format("{}: '{}' is missing: {}", name, key, meaning),
           fmt::format("add it to the recipe or give --set {}=PATH", key));
  }
}

void check_divisible(const Recipe& recipe, const std::string& where) {
  const int64_t total = recipe.train.total_batch_size.value_or(0), micro = recipe.train.train_batch_size;
  if (total % micro != 0) {
    refuse(fmt::format("{}'train.total_batch_size' {} is not a multiple of 'train.train_batch_size' {}", where, total,
                       micro),
           fmt::format("an optimizer step is a whole number of micro-batches: {} or {} would do",
                       std::max(total / micro, int64_t{1}) * micro, (total / micro + 1) * micro));
  }
}

// A product of two counts that both are positive and checked; nothing when it exceeds `most`.
std::optional<int64_t> product_up_to(int64_t a, int64_t b, int64_t most) {
  if (a > most / b) return std::nullopt;
  return a * b;
}

constexpr int64_t kMostImagesInAStep = int64_t{1} << 24;

void resolve_total_batch_size(Recipe::Train& train, int world_size) {
  if (train.total_batch_size) return;
  const int64_t steps = train.gradient_accumulation_steps.value_or(1);
  const auto on_one_rank = product_up_to(train.train_batch_size, steps, kMostImagesInAStep);
  const auto total = on_one_rank ? product_up_to(*on_one_rank, world_size, kMostImagesInAStep) : std::nullopt;
  if (!total) {
    refuse(fmt::format("recipe: 'train.train_batch_size' {} * 'train.gradient_accumulation_steps' {} * {} ranks are "
                       "more than {} images "
                       "in an optimizer step",
                       train.train_batch_size, steps, world_size, kMostImagesInAStep),
           "set train.total_batch_size instead of gradient_accumulation_steps");
  }
  train.total_batch_size = total;
  train.gradient_accumulation_steps.reset();
}

void resolve_max_train_steps(Recipe::Train& train, int64_t images_per_epoch) {
  if (train.max_train_steps) return;
  const int64_t epochs = train.num_train_epochs.value_or(1), total = *train.total_batch_size;
  constexpr int64_t kMostSlots = int64_t{1} << 62;
  const auto images = images_per_epoch > 0 ? product_up_to(images_per_epoch, epochs, kMostSlots) : std::nullopt;
  if (!images) {
    refuse(fmt::format("recipe: 'train.num_train_epochs' {} over {} samples gives no length of a run", epochs,
                       images_per_epoch),
           "set train.max_train_steps");
  }
  train.max_train_steps = (*images + total - 1) / total;
  train.num_train_epochs.reset();
}

}  // namespace

void check_recipe_rules(const Recipe& recipe, const std::string& name) {
  require(recipe.model.pretrained_model_name_or_path, "model.pretrained_model_name_or_path",
          "the folder of the base model", name);
  if (recipe.task == "text_to_image") {
    require(recipe.data.train_data_dir, "data.train_data_dir", "the pack or image folder to train on", name);
  }
  require(recipe.output_dir, "output_dir", "the folder that the run is written to", name);
  check_bucket_rules(recipe, name);
  check_dreambooth_rules(recipe, name);
  if (!recipe.lora.train_text_encoder &&
      recipe.lora.text_encoder_target_modules != Recipe().lora.text_encoder_target_modules) {
    refuse(fmt::format("{}: 'lora.text_encoder_target_modules' has no effect without lora.train_text_encoder = true", name),
           "set it, or remove the key");
  }
  const Recipe::Train& train = recipe.train;
  if (train.total_batch_size && train.gradient_accumulation_steps) {
    refuse(fmt::format("{}: 'train.total_batch_size' and 'train.gradient_accumulation_steps' exclude each other", name),
           "keep total_batch_size: it means the same on any number of ranks");
  }
  if (train.max_train_steps && train.num_train_epochs) {
    refuse(fmt::format("{}: 'train.max_train_steps' and 'train.num_train_epochs' exclude each other", name),
           "keep one of them");
  }
  if (!train.max_train_steps && !train.num_train_epochs) {
    refuse(fmt::format(
               "{}: neither 'train.max_train_steps' nor 'train.num_train_epochs' is there: how long is the run?", name),
           "add max_train_steps to [train]");
  }
  if (train.total_batch_size) check_divisible(recipe, name + ": ");
  const bool weighs = train.snr_gamma || recipe.loss.debiased_estimation_loss || recipe.loss.v_pred_like_loss != 0 ||
                      recipe.loss.scale_v_pred_loss_like_noise_pred;
  if (train.do_edm_style_training && weighs) {
    refuse(fmt::format("{}: 'train.do_edm_style_training' weighs timesteps by itself", name),
           "leave out snr_gamma, debiased_estimation_loss, v_pred_like_loss and scale_v_pred_loss_like_noise_pred");
  }
  if (recipe.data.enable_bucket && recipe.validation.validation_split > 0) {
    refuse(fmt::format("{}: 'validation.validation_split' and 'data.enable_bucket' don't go together", name),
           "held-out pictures are squares only: leave one of the two out");
  }
  if (recipe.noise.multires_noise_iterations > 0 && train.noise_offset != 0) {
    refuse(fmt::format("{}: 'noise.multires_noise_iterations' and 'train.noise_offset' exclude each other", name),
           "both give the noise a coarse part: keep one of them");
  }
  const Recipe::Lora& lora = recipe.lora;
  if (lora.use_dora && (lora.rank_dropout > 0 || lora.module_dropout > 0 || lora.scale_weight_norms)) {
    refuse(fmt::format("{}: 'lora.use_dora' excludes rank_dropout, module_dropout and scale_weight_norms", name),
           "they are for plain pairs: DoRA's weights have the norms of its magnitudes");
  }
  check_optimizer_rules(recipe, name);
  const Recipe::Validation& validation = recipe.validation;
  if (validation.validation_steps && validation.validation_epochs) {
    refuse(fmt::format("{}: 'validation.validation_steps' and 'validation.validation_epochs' exclude each other", name),
           "keep one of them");
  }
  if (validation.use_karras_sigmas && validation.scheduler != "dpmsolver++" && validation.scheduler != "euler") {
    refuse(fmt::format("{}: 'validation.use_karras_sigmas' has no meaning for the scheduler \"{}\"", name,
                       validation.scheduler),
           "take dpmsolver++ or euler");
  }
  if (recipe.data.cache_latents && !recipe.data.center_crop) {
    refuse(fmt::format("{}: 'data.cache_latents' needs 'data.center_crop'", name),
           "a picture that is cropped at random has more latents than can be kept");
  }
  if (recipe.data.cache_text_embeddings && recipe.lora.train_text_encoder) {
    refuse(fmt::format("{}: 'data.cache_text_embeddings' and 'lora.train_text_encoder' exclude each other", name),
           "the embeddings of a trained text encoder change with every step");
  }
  const Recipe::Distributed& distributed = recipe.distributed;
  if (distributed.collective_timeout_s > 0 && distributed.collective_timeout_s < 3 * distributed.heartbeat_s) {
    refuse(fmt::format("{}: 'distributed.collective_timeout_s' = {:g} is less than three times 'distributed.heartbeat_s' = {:g}", name,
                       distributed.collective_timeout_s, distributed.heartbeat_s),
           "one late heartbeat must not end a run");
  }
}

void resolve_recipe(Recipe& recipe, int world_size, int local_world_size, int64_t images_per_epoch) {
  check_recipe_rules(recipe, "recipe");
  resolve_total_batch_size(recipe.train, world_size);
  resolve_max_train_steps(recipe.train, images_per_epoch);
  const Recipe::LrSchedule& schedule = recipe.lr_scheduler;
  if (schedule.lr_decay_steps > 0 && schedule.lr_warmup_steps + schedule.lr_decay_steps > *recipe.train.max_train_steps) {
    refuse(fmt::format("recipe: 'lr_scheduler.lr_warmup_steps' {} and 'lr_scheduler.lr_decay_steps' {} are more than the run's {} steps",
                       schedule.lr_warmup_steps, schedule.lr_decay_steps, *recipe.train.max_train_steps),
           "the learning rate must have risen before it falls");
  }
  if (!recipe.lora.lora_alpha) recipe.lora.lora_alpha = static_cast<double>(recipe.lora.rank);
  if (recipe.optimizer.scale_lr) {
    // The product is kept and the switch turned off, so that resolving the printed recipe again changes nothing.
    recipe.optimizer.learning_rate *= static_cast<double>(*recipe.train.total_batch_size);
    recipe.optimizer.scale_lr = false;
  }
  if (recipe.optimizer.use_8bit_adam) {
    recipe.optimizer.optimizer = "adamw8bit";
    recipe.optimizer.use_8bit_adam = false;
  }
  if (recipe.distributed.threads_per_rank == 0) {
    const int64_t cores = std::max(1U, std::thread::hardware_concurrency());
    recipe.distributed.threads_per_rank =
        recipe.train.deterministic ? 1 : std::max<int64_t>(1, cores / std::max(1, local_world_size));
  }
}

void keep_total_batch_size(Recipe& recipe, const Recipe& saved) {
  if (recipe.train.total_batch_size || !saved.train.total_batch_size) return;
  const int64_t steps = recipe.train.gradient_accumulation_steps.value_or(1), total = *saved.train.total_batch_size;
  const auto on_one_rank = product_up_to(recipe.train.train_batch_size, steps, kMostImagesInAStep);
  if (!on_one_rank || total % *on_one_rank != 0) {
    refuse(fmt::format(
               "recipe: the run to go on with has 'train.total_batch_size' {}, which no number of ranks makes from "
               "'train.train_batch_size' {} and 'train.gradient_accumulation_steps' {}",
               total, recipe.train.train_batch_size, steps),
           "restore the two values the run was started with, or choose another output_dir");
  }
  recipe.train.total_batch_size = total;
  recipe.train.gradient_accumulation_steps.reset();
}

}  // namespace lorashard
