// Keys of [optimizer], [ema] and [lr_scheduler].
#include "trainer/recipe_checks.h"

namespace lorashard {

namespace {

void add_rates(Fields& f, Recipe::Optimizer& o) {
  f.push_back({"optimizer", "optimizer", &o.optimizer, one_of({"adamw", "adamw8bit", "prodigy", "adafactor", "lion"}),
               kIdentity, "Which optimizer; docs/optimizers.md compares them."});
  f.push_back({"optimizer", "learning_rate", &o.learning_rate, at_least(0), kIdentity,
               "Learning rate after warmup, before the schedule lowers it. With prodigy a factor, best left near 1."});
  f.push_back({"optimizer", "text_encoder_lr", &o.text_encoder_lr, at_least(0), kIdentity,
               "Learning rate of the text encoders' part of the adapter. Absent: learning_rate."});
  f.push_back({"optimizer", "loraplus_lr_ratio", &o.loraplus_lr_ratio, above_zero(), kIdentity,
               "LoRA+: the up matrices (and DoRA's magnitudes) learn this many times as fast as the down matrices."});
  f.push_back(
      {"optimizer", "lr_pattern", &o.lr_pattern, rates_by_pattern(), kIdentity,
       "Learning rates of layers by name: { \"attn2\" = 5e-5, \"up_blocks.1\" = 2e-4 }. A pattern is one or more whole "
       "names of the layer's path, which begins with unet, text_encoder or text_encoder_2; where several fit, the "
       "longest "
       "counts."});
  f.push_back({"optimizer", "scale_lr", &o.scale_lr, anything(), kIdentity,
               "Multiply learning_rate by total_batch_size at the start; the run's recipe.toml holds the product."});
}

void add_adam(Fields& f, Recipe::Optimizer& o) {
  f.push_back({"optimizer", "use_8bit_adam", &o.use_8bit_adam, anything(), kIdentity,
               "The scripts' name for optimizer = \"adamw8bit\"; the run's recipe.toml holds that."});
  f.push_back({"optimizer", "adam_beta1", &o.adam_beta1, below_one(), kIdentity,
               "Decay of the mean of gradients (adamw, adamw8bit, prodigy)."});
  f.push_back({"optimizer", "adam_beta2", &o.adam_beta2, below_one(), kIdentity,
               "Decay of the mean of squared gradients (adamw, adamw8bit, prodigy)."});
  f.push_back({"optimizer", "adam_weight_decay", &o.adam_weight_decay, at_least(0), kIdentity,
               "Weight decay, of every optimizer; decoupled."});
  f.push_back({"optimizer", "adam_weight_decay_text_encoder", &o.adam_weight_decay_text_encoder, at_least(0), kIdentity,
               "Weight decay of the text encoders' part of the adapter. Absent: adam_weight_decay."});
  f.push_back({"optimizer", "adam_weight_decay_magnitude", &o.adam_weight_decay_magnitude, at_least(0), kIdentity,
               "Weight decay of DoRA's magnitude vectors; 0 for none. Absent: as the other parts of the layer."});
  f.push_back({"optimizer", "adam_epsilon", &o.adam_epsilon, above_zero(), kIdentity,
               "Added to the root of the squared gradients' mean (adamw, adamw8bit, prodigy)."});
}

void add_others(Fields& f, Recipe::Optimizer& o) {
  f.push_back({"optimizer", "prodigy_beta3", &o.prodigy_beta3, below_one(), kIdentity,
               "Decay of Prodigy's step size estimate. Absent: the root of adam_beta2."});
  f.push_back({"optimizer", "prodigy_decouple", &o.prodigy_decouple, anything(), kIdentity,
               "Weight decay as in AdamW; false: added to the gradient."});
  f.push_back({"optimizer", "prodigy_use_bias_correction", &o.prodigy_use_bias_correction, anything(), kIdentity,
               "Adam's bias correction in Prodigy."});
  f.push_back({"optimizer", "prodigy_safeguard_warmup", &o.prodigy_safeguard_warmup, anything(), kIdentity,
               "Leave the learning rate out of the estimate's denominator, so that warmup doesn't disturb it."});
  f.push_back({"optimizer", "prodigy_d0", &o.prodigy_d0, above_zero(), kIdentity, "First estimate of the step size."});
  f.push_back({"optimizer", "prodigy_d_coef", &o.prodigy_d_coef, above_zero(), kIdentity,
               "Factor of the estimate: 0.5 and 2 are usual ways to slow Prodigy down and speed it up."});
  f.push_back({"optimizer", "adafactor_scale_parameter", &o.adafactor_scale_parameter, anything(), kIdentity,
               "Multiply a tensor's learning rate by the root mean square of its values (at least 1e-3)."});
  f.push_back({"optimizer", "adafactor_relative_step", &o.adafactor_relative_step, anything(), kIdentity,
               "Take min(0.01, 1 / sqrt(update)) as the learning rate instead of learning_rate."});
  f.push_back({"optimizer", "adafactor_warmup_init", &o.adafactor_warmup_init, anything(), kIdentity,
               "With adafactor_relative_step: 1e-6 * update in place of 0.01."});
  f.push_back({"optimizer", "lion_beta1", &o.lion_beta1, below_one(), kIdentity,
               "Weight of the mean of gradients in Lion's step."});
  f.push_back({"optimizer", "lion_beta2", &o.lion_beta2, below_one(), kIdentity, "Decay of Lion's mean of gradients."});
}

void add_ema(Fields& f, Recipe::Ema& e) {
  f.push_back({"ema", "use_ema", &e.use_ema, anything(), kIdentity,
               "Keep an exponential moving average of the adapter; the exported adapter is the average."});
  f.push_back({"ema", "ema_decay", &e.ema_decay, between(0, 1), kIdentity, "Largest decay of the average."});
  f.push_back({"ema", "ema_min_decay", &e.ema_min_decay, between(0, 1), kIdentity,
               "Smallest decay, once averaging has begun."});
  f.push_back({"ema", "ema_update_after_step", &e.ema_update_after_step, between(0, kMostSteps), kIdentity,
               "Updates before averaging begins; until then the average is the adapter itself."});
  f.push_back(
      {"ema", "use_ema_warmup", &e.use_ema_warmup, anything(), kIdentity,
       "Decay 1 - (1 + n / ema_inv_gamma)^-ema_power instead of (1 + n) / (10 + n), n being the updates averaged."});
  f.push_back({"ema", "ema_inv_gamma", &e.ema_inv_gamma, above_zero(), kIdentity, "See use_ema_warmup."});
  f.push_back({"ema", "ema_power", &e.ema_power, above_zero(), kIdentity, "See use_ema_warmup."});
}

}  // namespace

void add_optimizer_fields(Fields& f, Recipe& r) {
  add_rates(f, r.optimizer);
  add_adam(f, r.optimizer);
  add_others(f, r.optimizer);
  add_ema(f, r.ema);

  f.push_back({"lr_scheduler", "lr_scheduler", &r.lr_scheduler.lr_scheduler,
               one_of({"constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "cosine_with_min_lr",
                       "warmup_stable_decay"}),
               kIdentity, "How the learning rate changes over the run: diffusers' schedules of these names, the last two transformers'."});
  f.push_back({"lr_scheduler", "lr_warmup_steps", &r.lr_scheduler.lr_warmup_steps, between(0, kMostSteps), kIdentity,
               "Optimizer steps over which the learning rate rises from 0 (warmup_stable_decay: from where it ends). Not used by constant."});
  f.push_back({"lr_scheduler", "lr_num_cycles", &r.lr_scheduler.lr_num_cycles, between(1, kMostSteps), kIdentity,
               "Restarts of cosine_with_restarts."});
  f.push_back(
      {"lr_scheduler", "lr_power", &r.lr_scheduler.lr_power, above_zero(), kIdentity, "Exponent of polynomial."});
  f.push_back({"lr_scheduler", "lr_scheduler_min_lr_ratio", &r.lr_scheduler.lr_scheduler_min_lr_ratio, below_one(), kIdentity,
               "Where cosine_with_min_lr and warmup_stable_decay end, as a part of the learning rate."});
  f.push_back({"lr_scheduler", "lr_decay_steps", &r.lr_scheduler.lr_decay_steps, between(0, kMostSteps), kIdentity,
               "Optimizer steps at the end over which the learning rate of warmup_stable_decay falls."});
}

}  // namespace lorashard
