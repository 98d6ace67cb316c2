#include "trainer/make_optimizer.h"

#include "dist/error.h"
#include "trainer/adafactor.h"
#include "trainer/adamw.h"
#include "trainer/adamw_8bit.h"
#include "trainer/lion.h"
#include "trainer/lr_scheduler.h"
#include "trainer/prodigy.h"

namespace lorashard {

std::unique_ptr<Optimizer> make_optimizer(const Recipe::Optimizer& o, const at::Tensor& parameters,
                                          std::vector<ParameterGroup> groups) {
  const AdamWOptions adam{.beta1 = o.adam_beta1, .beta2 = o.adam_beta2, .epsilon = o.adam_epsilon};
  if (o.optimizer == "adamw8bit" || (o.optimizer == "adamw" && o.use_8bit_adam))
    return std::make_unique<AdamW8bit>(parameters, std::move(groups), adam);
  if (o.optimizer == "adamw") return std::make_unique<AdamW>(parameters, std::move(groups), adam);
  if (o.optimizer == "adafactor")
    return std::make_unique<Adafactor>(parameters, std::move(groups),
                                       AdafactorOptions{.scale_parameter = o.adafactor_scale_parameter});
  if (o.optimizer == "lion")
    return std::make_unique<Lion>(parameters, std::move(groups),
                                  LionOptions{.beta1 = o.lion_beta1, .beta2 = o.lion_beta2});
  if (o.optimizer == "prodigy")
    return std::make_unique<Prodigy>(parameters, std::move(groups),
                                     ProdigyOptions{.beta1 = o.adam_beta1,
                                                    .beta2 = o.adam_beta2,
                                                    .epsilon = o.adam_epsilon,
                                                    .beta3 = o.prodigy_beta3,
                                                    .decouple = o.prodigy_decouple,
                                                    .use_bias_correction = o.prodigy_use_bias_correction,
                                                    .safeguard_warmup = o.prodigy_safeguard_warmup,
                                                    .d0 = o.prodigy_d0,
                                                    .d_coef = o.prodigy_d_coef});
  throw Error(ErrorKind::usage,
              fmt::format("optimizer '{}': expected adamw, adamw8bit, prodigy, adafactor or lion", o.optimizer));
}

std::vector<double> learning_rates_of(const Recipe& recipe, const std::vector<ParameterGroup>& groups,
                                      int64_t updates) {
  const Recipe::Optimizer& optimizer = recipe.optimizer;
  if (optimizer.optimizer == "adafactor" && optimizer.adafactor_relative_step) {
    const double rate = adafactor_relative_step(updates + 1, optimizer.adafactor_warmup_init);
    return std::vector<double>(groups.size(), rate);
  }
  const Recipe::LrSchedule& schedule = recipe.lr_scheduler;
  std::vector<double> bases;
  for (const ParameterGroup& group : groups) bases.push_back(group.learning_rate);
  return learning_rates({.name = schedule.lr_scheduler,
                         .warmup_steps = schedule.lr_warmup_steps,
                         .max_train_steps = *recipe.train.max_train_steps,
                         .num_cycles = schedule.lr_num_cycles,
                         .power = schedule.lr_power,
                         .min_lr_ratio = schedule.lr_scheduler_min_lr_ratio,
                         .decay_steps = schedule.lr_decay_steps},
                        optimizer.learning_rate, bases, updates);
}

std::vector<std::string> optimizer_warnings(const Recipe::Optimizer& o) {
  std::vector<std::string> warnings;
  if (o.optimizer != "prodigy") return warnings;
  if (o.learning_rate <= 0.1) {
    warnings.push_back(
        fmt::format("learning_rate = {} is low for Prodigy, which multiplies its own estimate by it: 1.0 is usual",
                    o.learning_rate));
  }
  if (o.text_encoder_lr) {
    warnings.push_back(
        fmt::format("text_encoder_lr = {} is not used: Prodigy has one learning rate for all, learning_rate = {}",
                    *o.text_encoder_lr, o.learning_rate));
  }
  return warnings;
}

}  // namespace lorashard
