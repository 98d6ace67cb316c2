#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "dist/error.h"
#include "trainer/make_optimizer.h"
#include "trainer/recipe.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

Recipe parse(const std::vector<std::string>& overrides) {
  return parse_recipe(
      "output_dir = \"x\"\n[model]\npretrained_model_name_or_path = \"x\"\n[data]\ntrain_data_dir = \"x\"\n"
      "[train]\nmax_train_steps = 10\ntotal_batch_size = 1\n",
      "small.toml", overrides);
}

std::string refusal(const std::vector<std::string>& overrides) {
  try {
    parse(overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return "";
}

TEST(OptimizerRules, AKeyWithoutEffectIsRefusedByName) {
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{"optimizer.prodigy_d_coef=2.0"}, "optimizer.prodigy_d_coef"},
      {{"optimizer.lion_beta1=0.8"}, "optimizer.lion_beta1"},
      {{"optimizer.adafactor_relative_step=true"}, "optimizer.adafactor_relative_step"},
      {{"optimizer.optimizer=lion", "optimizer.adam_beta2=0.9"}, "optimizer.adam_beta2"},
      {{"optimizer.optimizer=prodigy", "optimizer.use_8bit_adam=true"}, "optimizer.use_8bit_adam"},
      {{"optimizer.optimizer=prodigy", "optimizer.loraplus_lr_ratio=16"}, "optimizer.loraplus_lr_ratio"},
      {{"optimizer.optimizer=prodigy", "optimizer.lr_pattern={ attn2 = 1.0 }"}, "optimizer.lr_pattern"},
      {{"optimizer.optimizer=adafactor", "optimizer.adafactor_warmup_init=true"}, "optimizer.adafactor_warmup_init"},
      {{"optimizer.optimizer=adafactor", "optimizer.adafactor_relative_step=true", "optimizer.learning_rate=0.1"},
       "optimizer.learning_rate"},
      {{"optimizer.optimizer=adafactor", "optimizer.adafactor_relative_step=true", "lr_scheduler.lr_scheduler=cosine"},
       "lr_scheduler.lr_scheduler"},
      {{"lr_scheduler.lr_scheduler=cosine", "lr_scheduler.lr_scheduler_min_lr_ratio=0.1"}, "lr_scheduler.lr_scheduler_min_lr_ratio"},
      {{"lr_scheduler.lr_scheduler=cosine_with_min_lr", "lr_scheduler.lr_decay_steps=3"}, "lr_scheduler.lr_decay_steps"},
      {{"ema.ema_decay=0.9"}, "ema.ema_decay"},
      {{"ema.use_ema=true", "ema.ema_power=0.75"}, "ema.ema_power"}};
  for (const auto& [overrides, key] : cases) {
    EXPECT_THAT(refusal(overrides), HasSubstr(fmt::format("'{}' = ", key)));
    EXPECT_THAT(refusal(overrides), HasSubstr("would have no effect"));
  }
}

TEST(OptimizerRules, AScheduleThatFallsMustHaveStepsToFallIn) {
  EXPECT_THAT(refusal({"lr_scheduler.lr_scheduler=warmup_stable_decay"}), HasSubstr("needs 'lr_scheduler.lr_decay_steps'"));
  Recipe recipe = parse({"lr_scheduler.lr_scheduler=warmup_stable_decay", "lr_scheduler.lr_decay_steps=6", "lr_scheduler.lr_warmup_steps=4"});
  for (const int64_t steps : {9, 10}) {
    Recipe resolved = recipe;
    resolved.train.max_train_steps = steps;
    if (steps == 10) {
      resolve_recipe(resolved, 1, 1, 10);
    } else {
      EXPECT_THROW(resolve_recipe(resolved, 1, 1, 10), Error);
    }
  }
}

TEST(OptimizerRules, ADefaultThatIsSpelledOutIsNot) {
  parse({"optimizer.prodigy_d_coef=1.0", "ema.ema_decay=0.9999", "optimizer.use_8bit_adam=false"});
  parse({"optimizer.optimizer=prodigy", "optimizer.adam_beta2=0.99", "optimizer.prodigy_beta3=0.9"});
}

TEST(OptimizerRules, TheAliasOf8BitAdamWIsResolvedOnce) {
  Recipe recipe = parse({"optimizer.use_8bit_adam=true"});
  resolve_recipe(recipe, 1, 1, 10);
  EXPECT_EQ(recipe.optimizer.optimizer, "adamw8bit");
  const std::string printed = print_recipe(recipe);
  Recipe again = parse_recipe(printed, "printed");
  resolve_recipe(again, 1, 1, 10);
  EXPECT_EQ(print_recipe(again), printed);
}

TEST(OptimizerRules, TablesOfRatesAreReadAndPrintedAgain) {
  const Recipe recipe = parse({"optimizer.lr_pattern={ \"attn2.to_k\" = 5e-5, attn1 = 1 }"});
  EXPECT_EQ(recipe.optimizer.lr_pattern, (std::map<std::string, double>{{"attn2.to_k", 5e-5}, {"attn1", 1.0}}));
  EXPECT_EQ(parse_recipe(print_recipe(recipe), "printed").optimizer.lr_pattern, recipe.optimizer.lr_pattern);
  EXPECT_THAT(refusal({"optimizer.lr_pattern={ attn2 = \"fast\" }"}), HasSubstr("expected a table of numbers"));
  EXPECT_THAT(refusal({"optimizer.lr_pattern={ attn2 = -1.0 }"}), HasSubstr("each at least 0"));
  EXPECT_THAT(refusal({"optimizer.lr_pattern=0.1"}), HasSubstr("expected a table of numbers"));
}

TEST(LearningRates, EachGroupHasTheSchedulesFactorOfItsOwnRate) {
  Recipe recipe = parse({"lr_scheduler.lr_scheduler=constant_with_warmup", "lr_scheduler.lr_warmup_steps=4"});
  const std::vector<ParameterGroup> groups = {{.name = "a", .learning_rate = 1e-4, .weight_decay = 0, .tensors = {}},
                                              {.name = "b", .learning_rate = 8e-4, .weight_decay = 0, .tensors = {}}};
  EXPECT_EQ(learning_rates_of(recipe, groups, 0), (std::vector<double>{0, 0}));
  EXPECT_EQ(learning_rates_of(recipe, groups, 1), (std::vector<double>{1e-4 * 0.25, 8e-4 * 0.25}));
  recipe.optimizer.optimizer = "adafactor";
  recipe.optimizer.adafactor_relative_step = true;
  EXPECT_EQ(learning_rates_of(recipe, groups, 9'999'999), (std::vector<double>(2, 1 / std::sqrt(1e7))));
  EXPECT_EQ(learning_rates_of(recipe, groups, 0), (std::vector<double>(2, 1e-2)));
}

TEST(OptimizerWarnings, ProdigysAreTheScripts) {
  Recipe::Optimizer options;
  EXPECT_TRUE(optimizer_warnings(options).empty());
  options.optimizer = "prodigy";
  options.text_encoder_lr = 1e-5;
  EXPECT_EQ(optimizer_warnings(options).size(), 2u);
  options.learning_rate = 1.0;
  EXPECT_THAT(optimizer_warnings(options), testing::ElementsAre(HasSubstr("text_encoder_lr")));
}

}  // namespace
}  // namespace lorashard
