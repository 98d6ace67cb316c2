#include "trainer/recipe_options.h"

#include "dist/error.h"

namespace lorashard {
namespace {

void require_prediction(bool holds, const std::string& key, const std::string& expected, const std::string& found) {
  if (holds) return;
  throw Error(ErrorKind::usage,
              fmt::format("checking the recipe against the base model: '{}' needs a model that predicts {}, and this one "
                          "has prediction_type '{}'",
                          key, expected, found),
              "leave the key out, or set model.prediction_type if the base's scheduler is wrong about it");
}

/// A base of EDM's formulation has no signal-to-noise ratio of betas to weigh by.
void refuse_what_needs_betas(const Recipe& recipe) {
  const Recipe::Loss& loss = recipe.loss;
  const bool huber = loss.loss_type == "huber" || loss.loss_type == "smooth_l1";
  const char* const key = recipe.train.snr_gamma                   ? "train.snr_gamma"
                          : loss.scale_v_pred_loss_like_noise_pred ? "loss.scale_v_pred_loss_like_noise_pred"
                          : loss.v_pred_like_loss != 0             ? "loss.v_pred_like_loss"
                          : loss.debiased_estimation_loss          ? "loss.debiased_estimation_loss"
                          : huber && loss.huber_schedule == "snr"  ? "loss.huber_schedule"
                                                                   : nullptr;
  if (key == nullptr) return;
  throw Error(ErrorKind::usage,
              fmt::format("checking the recipe against the base model: '{}' weighs by the noise of beta schedules, and this base has an "
                          "EDMEulerScheduler",
                          key),
              "leave the key out, or for loss.huber_schedule take \"exponential\" or \"constant\"");
}

}  // namespace

std::optional<BucketOptions> bucket_options(const Recipe& recipe) {
  const Recipe::Data& d = recipe.data;
  if (!d.enable_bucket) return std::nullopt;
  return BucketOptions{.resolution = d.resolution,
                       .min_bucket_reso = d.min_bucket_reso,
                       .max_bucket_reso = d.max_bucket_reso,
                       .bucket_reso_steps = d.bucket_reso_steps,
                       .bucket_no_upscale = d.bucket_no_upscale};
}

CaptionOptions caption_options(const Recipe& recipe) {
  const Recipe::Captions& c = recipe.captions;
  return {.caption_prefix = c.caption_prefix,
          .caption_suffix = c.caption_suffix,
          .caption_dropout_rate = c.caption_dropout_rate,
          .caption_dropout_every_n_epochs = c.caption_dropout_every_n_epochs,
          .enable_wildcard = c.enable_wildcard,
          .shuffle_caption = c.shuffle_caption,
          .keep_tokens = c.keep_tokens,
          .keep_tokens_separator = c.keep_tokens_separator,
          .caption_separator = c.caption_separator,
          .secondary_separator = c.secondary_separator,
          .caption_tag_dropout_rate = c.caption_tag_dropout_rate};
}

TimestepOptions timestep_options(const Recipe& recipe, int64_t num_train_timesteps) {
  const Recipe::Timesteps& t = recipe.timesteps;
  return {.num_train_timesteps = num_train_timesteps,
          .min_timestep = t.min_timestep,
          .max_timestep = t.max_timestep,
          .bias_strategy = t.timestep_bias_strategy,
          .bias_multiplier = t.timestep_bias_multiplier,
          .bias_begin = t.timestep_bias_begin,
          .bias_end = t.timestep_bias_end,
          .bias_portion = t.timestep_bias_portion};
}

LossOptions loss_options(const Recipe& recipe, const DDPMSchedulerConfig& scheduler) {
  const std::string& prediction = scheduler.prediction_type;
  const Recipe::Loss& loss = recipe.loss;
  require_prediction(!loss.scale_v_pred_loss_like_noise_pred || prediction == "v_prediction",
                     "loss.scale_v_pred_loss_like_noise_pred", "velocities (v_prediction)", prediction);
  require_prediction(loss.v_pred_like_loss == 0 || prediction == "epsilon", "loss.v_pred_like_loss", "noise (epsilon)",
                     prediction);
  require_prediction(!loss.debiased_estimation_loss || prediction != "sample", "loss.debiased_estimation_loss",
                     "noise or velocities", prediction);
  require_prediction(!recipe.train.do_edm_style_training || prediction != "sample", "train.do_edm_style_training",
                     "noise or velocities", prediction);
  if (scheduler.edm) refuse_what_needs_betas(recipe);
  return {.noise_offset = recipe.train.noise_offset,
          .adaptive_noise_scale = recipe.noise.adaptive_noise_scale,
          .input_perturbation = recipe.train.input_perturbation,
          // A base of EDM's formulation is trained so anyway, and its timesteps aren't weighed.
          .do_edm_style_training = recipe.train.do_edm_style_training && !scheduler.edm,
          .loss_type = loss.loss_type,
          .huber_schedule = loss.huber_schedule,
          .huber_c = loss.huber_c,
          .huber_scale = loss.huber_scale,
          .snr_gamma = recipe.train.snr_gamma,
          .velocity_weight_at_least_one = recipe.task == "dreambooth",  // the two kinds of scripts differ
          .scale_v_pred_loss_like_noise_pred = loss.scale_v_pred_loss_like_noise_pred,
          .v_pred_like_loss = loss.v_pred_like_loss,
          .debiased_estimation_loss = loss.debiased_estimation_loss,
          .masked_loss = loss.masked_loss,
          .unmasked_weight = loss.unmasked_weight,
          .normalize_masked_area_loss = loss.normalize_masked_area_loss};
}

}  // namespace lorashard
