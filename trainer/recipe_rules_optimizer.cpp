// The rules of [optimizer], [ema] and [lr_scheduler]: a key that would have no effect is refused, not ignored.
#include <fmt/core.h>

#include "dist/error.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

struct Rule {
  std::string keys;  ///< "optimizer.prodigy_": those that begin so
  bool applies;      ///< whether these keys have an effect in this recipe
  std::string when;  ///< "with optimizer = \"prodigy\""
};

/// Refuses a value other than the default of a key whose rule says that it has no effect.
void refuse_without_effect(const Recipe& recipe, const std::string& name, const std::vector<Rule>& rules) {
  Recipe given = recipe, defaults;
  const std::vector<RecipeField> fields = recipe_fields(given), default_fields = recipe_fields(defaults);
  for (size_t i = 0; i < fields.size(); ++i) {
    const std::string value = value_as_toml(fields[i].member);
    if (value == value_as_toml(default_fields[i].member)) continue;
    for (const Rule& rule : rules) {
      if (rule.applies || !fields[i].name().starts_with(rule.keys)) continue;
      throw Error(ErrorKind::usage,
                  fmt::format("{}: '{}' = {} would have no effect: it has one only {}", name, fields[i].name(), value,
                              rule.when),
                  "remove the key");
    }
  }
}

}  // namespace

void check_optimizer_rules(const Recipe& recipe, const std::string& name) {
  const std::string& optimizer = recipe.optimizer.optimizer;
  const bool prodigy = optimizer == "prodigy", adafactor = optimizer == "adafactor", lion = optimizer == "lion";
  const bool relative_step = adafactor && recipe.optimizer.adafactor_relative_step;
  const std::string own_rate = "without adafactor_relative_step, which sets the learning rate itself";
  const std::string of_adam = "with optimizer = \"adamw\", \"adamw8bit\" or \"prodigy\"";
  const std::string one_rate = "with an optimizer other than prodigy, which has one learning rate for all";
  const std::string& schedule = recipe.lr_scheduler.lr_scheduler;
  const bool with_decay = schedule == "warmup_stable_decay";
  if (with_decay && recipe.lr_scheduler.lr_decay_steps == 0) {
    throw Error(ErrorKind::usage, fmt::format("{}: lr_scheduler = \"warmup_stable_decay\" needs 'lr_scheduler.lr_decay_steps'", name),
                "give the number of steps at the end over which the learning rate falls");
  }
  refuse_without_effect(
      recipe, name,
      {{"optimizer.use_8bit_adam", optimizer == "adamw" || optimizer == "adamw8bit", "with optimizer = \"adamw\""},
       {"optimizer.adam_beta", !adafactor && !lion, of_adam},
       {"optimizer.adam_epsilon", !adafactor && !lion, of_adam},
       {"optimizer.prodigy_", prodigy, "with optimizer = \"prodigy\""},
       {"optimizer.adafactor_warmup_init", relative_step, "with adafactor_relative_step"},
       {"optimizer.adafactor_", adafactor, "with optimizer = \"adafactor\""},
       {"optimizer.lion_", lion, "with optimizer = \"lion\""},
       {"optimizer.learning_rate", !relative_step, own_rate},
       {"optimizer.text_encoder_lr", !relative_step, own_rate},
       {"optimizer.lr_pattern", !relative_step, own_rate},
       {"optimizer.loraplus_lr_ratio", !relative_step, own_rate},
       {"optimizer.scale_lr", !relative_step, own_rate},
       {"lr_scheduler.lr_scheduler", !relative_step, own_rate},
       {"lr_scheduler.lr_scheduler_min_lr_ratio", with_decay || schedule == "cosine_with_min_lr",
        "with lr_scheduler = \"cosine_with_min_lr\" or \"warmup_stable_decay\""},
       {"lr_scheduler.lr_decay_steps", with_decay, "with lr_scheduler = \"warmup_stable_decay\""},
       {"optimizer.lr_pattern", !prodigy, one_rate},
       {"optimizer.loraplus_lr_ratio", !prodigy, one_rate},
       {"ema.ema_", recipe.ema.use_ema, "with use_ema = true"},
       {"ema.use_ema_warmup", recipe.ema.use_ema, "with use_ema = true"},
       {"ema.ema_inv_gamma", recipe.ema.use_ema_warmup, "with use_ema_warmup = true"},
       {"ema.ema_power", recipe.ema.use_ema_warmup, "with use_ema_warmup = true"}});
}

}  // namespace lorashard
