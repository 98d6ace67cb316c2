// Keys of [noise], [timesteps] and [loss].
#include "trainer/recipe_checks.h"

namespace lorashard {
namespace {

void add_noise_fields(Fields& f, Recipe& r) {
  f.push_back({"noise", "noise_offset_random_strength", &r.noise.noise_offset_random_strength, anything(), kIdentity,
               "train.noise_offset of each image is times a uniform number between 0 and 1."});
  f.push_back({"noise", "adaptive_noise_scale", &r.noise.adaptive_noise_scale, anything(), kIdentity,
               "Add this times the absolute mean of a latent's channel to train.noise_offset. Absent: no such term."});
  f.push_back({"noise", "input_perturbation_random_strength", &r.noise.input_perturbation_random_strength, anything(),
               kIdentity, "train.input_perturbation of each image is times a uniform number between 0 and 1."});
  f.push_back({"noise", "multires_noise_iterations", &r.noise.multires_noise_iterations, between(0, 32), kIdentity,
               "Add noise of at most so many levels, each coarser than the one before, to the noise (pyramid noise; 6 to 10 are "
               "usual), and scale the sum back to a deviation of 1. 0: none. Excludes train.noise_offset."});
  f.push_back({"noise", "multires_noise_discount", &r.noise.multires_noise_discount, between(0, 1), kIdentity,
               "Each level is times this once more than the one before."});
}

void add_timestep_fields(Fields& f, Recipe& r) {
  f.push_back({"timesteps", "min_timestep", &r.timesteps.min_timestep, at_least(0), kIdentity,
               "The first timestep that is trained on."});
  f.push_back({"timesteps", "max_timestep", &r.timesteps.max_timestep, at_least(0), kIdentity,
               "The timestep after the last that is trained on. 0: all of the base model's noise schedule."});
  f.push_back({"timesteps", "timestep_bias_strategy", &r.timesteps.timestep_bias_strategy,
               one_of({"none", "earlier", "later", "range"}), kIdentity,
               "Which timesteps are drawn timestep_bias_multiplier times as often as the others: the first or the last "
               "timestep_bias_portion of them, or those from timestep_bias_begin to timestep_bias_end."});
  f.push_back({"timesteps", "timestep_bias_multiplier", &r.timesteps.timestep_bias_multiplier, above_zero(), kIdentity,
               "How much more often (above 1) or less often (below 1)."});
  f.push_back({"timesteps", "timestep_bias_begin", &r.timesteps.timestep_bias_begin, at_least(0), kIdentity,
               "Of \"range\": the first timestep."});
  f.push_back({"timesteps", "timestep_bias_end", &r.timesteps.timestep_bias_end, at_least(0), kIdentity,
               "Of \"range\": the timestep after the last."});
  f.push_back({"timesteps", "timestep_bias_portion", &r.timesteps.timestep_bias_portion, between(0, 1), kIdentity,
               "Of \"earlier\" and \"later\": the part of the timesteps."});
}

}  // namespace

void add_loss_fields(Fields& f, Recipe& r) {
  add_noise_fields(f, r);
  add_timestep_fields(f, r);
  f.push_back({"loss", "loss_type", &r.loss.loss_type, one_of({"l2", "l1", "huber", "smooth_l1"}), kIdentity,
               "How prediction and target are compared, element by element: squared or absolute difference, or Huber's, "
               "which is the first where they are near and the second elsewhere."});
  f.push_back({"loss", "huber_schedule", &r.loss.huber_schedule, one_of({"snr", "exponential", "constant"}), kIdentity,
               "How the width of Huber's squared part goes with the timestep."});
  f.push_back({"loss", "huber_c", &r.loss.huber_c, above_zero(), kIdentity,
               "That width: its least with snr, its last with exponential."});
  f.push_back({"loss", "huber_scale", &r.loss.huber_scale, above_zero(), kIdentity,
               "Factor of that width with exponential and constant."});
  f.push_back({"loss", "debiased_estimation_loss", &r.loss.debiased_estimation_loss, anything(), kIdentity,
               "Divide each image's loss by the root of its timestep's SNR, with v_prediction by SNR + 1 (arXiv "
               "2310.08442)."});
  f.push_back({"loss", "scale_v_pred_loss_like_noise_pred", &r.loss.scale_v_pred_loss_like_noise_pred, anything(),
               kIdentity, "With v_prediction: weigh timesteps as a loss of the noise would."});
  f.push_back({"loss", "v_pred_like_loss", &r.loss.v_pred_like_loss, at_least(0), kIdentity,
               "With epsilon: add this times the loss that v_prediction would have."});
  f.push_back({"loss", "masked_loss", &r.loss.masked_loss, anything(), kIdentity,
               "Multiply each latent's loss by the picture's mask (white: counts). Masks are packed by mask_column or "
               "alpha_masks; a picture without one counts all over."});
  f.push_back({"loss", "unmasked_weight", &r.loss.unmasked_weight, between(0, 1), kIdentity,
               "The least that a mask weighs."});
  f.push_back({"loss", "normalize_masked_area_loss", &r.loss.normalize_masked_area_loss, anything(), kIdentity,
               "Divide each image's masked loss by the mean of its mask, so that small masks count as much as large ones."});
}

}  // namespace lorashard
