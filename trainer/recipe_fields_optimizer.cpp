// Keys of [optimizer] and [lr_scheduler].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_optimizer_fields(Fields& f, Recipe& r) {
  f.push_back({"optimizer", "optimizer", &r.optimizer.optimizer, one_of({"adamw"}), kIdentity, "Which optimizer."});
  f.push_back({"optimizer", "learning_rate", &r.optimizer.learning_rate, at_least(0), kIdentity,
               "Learning rate after warmup, before the schedule lowers it."});
  f.push_back({"optimizer", "scale_lr", &r.optimizer.scale_lr, anything(), kIdentity,
               "Multiply learning_rate by total_batch_size at the start; the run's recipe.toml holds the product."});
  f.push_back(
      {"optimizer", "adam_beta1", &r.optimizer.adam_beta1, below_one(), kIdentity, "Decay of the mean of gradients."});
  f.push_back({"optimizer", "adam_beta2", &r.optimizer.adam_beta2, below_one(), kIdentity,
               "Decay of the mean of squared gradients."});
  f.push_back({"optimizer", "adam_weight_decay", &r.optimizer.adam_weight_decay, at_least(0), kIdentity,
               "Decoupled weight decay."});
  f.push_back({"optimizer", "adam_epsilon", &r.optimizer.adam_epsilon, above_zero(), kIdentity,
               "Added to the root of the squared gradients' mean."});

  f.push_back({"lr_scheduler", "lr_scheduler", &r.lr_scheduler.lr_scheduler,
               one_of({"constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"}),
               kIdentity, "How the learning rate changes over the run: diffusers' schedules of these names."});
  f.push_back({"lr_scheduler", "lr_warmup_steps", &r.lr_scheduler.lr_warmup_steps, between(0, kMostSteps), kIdentity,
               "Optimizer steps over which the learning rate rises from 0. Not used by constant."});
  f.push_back({"lr_scheduler", "lr_num_cycles", &r.lr_scheduler.lr_num_cycles, between(1, kMostSteps), kIdentity,
               "Restarts of cosine_with_restarts."});
  f.push_back(
      {"lr_scheduler", "lr_power", &r.lr_scheduler.lr_power, above_zero(), kIdentity, "Exponent of polynomial."});
}

}  // namespace lorashard
