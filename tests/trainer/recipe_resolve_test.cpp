#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <random>

#include "dist/error.h"
#include "trainer/recipe.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

Recipe small() {
  Recipe recipe;
  recipe.output_dir = "runs/a";
  recipe.model.pretrained_model_name_or_path = "base";
  recipe.data.train_data_dir = "pack";
  recipe.train.max_train_steps = 10;
  return recipe;
}

std::map<std::string, std::string> identity(const Recipe& recipe) {
  const auto values = identity_values(recipe);
  return {values.begin(), values.end()};
}

std::string usage_fault(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return "";
}

TEST(RecipeResolve, TotalBatchSizeComesFromAccumulationAndRanks) {
  Recipe recipe = small();
  recipe.train.train_batch_size = 2;
  recipe.train.gradient_accumulation_steps = 4;
  resolve_recipe(recipe, 3, 3, 100);
  EXPECT_EQ(recipe.train.total_batch_size, 24);
  EXPECT_EQ(recipe.train.gradient_accumulation_steps, std::nullopt);

  Recipe neither = small();
  neither.train.train_batch_size = 5;
  resolve_recipe(neither, 2, 2, 100);
  EXPECT_EQ(neither.train.total_batch_size, 10);

  Recipe given = small();
  given.train.total_batch_size = 6;
  resolve_recipe(given, 4, 4, 100);
  EXPECT_EQ(given.train.total_batch_size, 6);
}

TEST(RecipeResolve, EpochsBecomeSteps) {
  for (const auto& [samples, epochs, total, steps] :
       {std::tuple{833, 100, 4, 20825}, {833, 1, 4, 209}, {10, 3, 8, 4}, {16, 1, 8, 2}, {5, 1, 8, 1}}) {
    Recipe recipe = small();
    recipe.train.max_train_steps.reset();
    recipe.train.num_train_epochs = epochs;
    recipe.train.total_batch_size = total;
    resolve_recipe(recipe, 2, 2, samples);
    EXPECT_EQ(recipe.train.max_train_steps, steps);
    EXPECT_EQ(recipe.train.num_train_epochs, std::nullopt);
  }
}

TEST(RecipeResolve, AbsentValuesAreFilledIn) {
  Recipe recipe = small();
  recipe.lora.rank = 16;
  resolve_recipe(recipe, 1, 1, 100);
  EXPECT_EQ(recipe.lora.lora_alpha, 16.0);
  EXPECT_EQ(recipe.distributed.threads_per_rank, 1);  // deterministic

  Recipe fast = small();
  fast.train.deterministic = false;
  resolve_recipe(fast, 1'000'000, 1'000'000, 100);
  EXPECT_EQ(fast.distributed.threads_per_rank, 1);  // more ranks than cores
}

TEST(RecipeResolve, LearningRateIsScaledOnce) {
  Recipe recipe = small();
  recipe.optimizer.scale_lr = true;
  recipe.optimizer.learning_rate = 1e-4;
  recipe.train.gradient_accumulation_steps = 4;
  resolve_recipe(recipe, 2, 2, 100);
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4 * 8);
  resolve_recipe(recipe, 2, 2, 100);
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4 * 8);
}

TEST(RecipeResolve, PrintedRecipeResolvesToItselfOnAnyRanks) {
  Recipe recipe = small();
  recipe.optimizer.scale_lr = true;
  recipe.train.max_train_steps.reset();
  recipe.train.num_train_epochs = 7;
  recipe.train.gradient_accumulation_steps = 3;
  resolve_recipe(recipe, 2, 2, 100);
  const std::string printed = print_recipe(recipe);
  Recipe again = parse_recipe(printed, "recipe.toml");
  resolve_recipe(again, 5, 3, 1000);
  EXPECT_EQ(print_recipe(again), printed);
}

TEST(RecipeResolve, ProductsThatAreTooLargeAreRefused) {
  Recipe recipe = small();
  recipe.train.train_batch_size = 65536;
  recipe.train.gradient_accumulation_steps = 1 << 24;
  EXPECT_THAT(usage_fault([&] { resolve_recipe(recipe, 2, 2, 100); }), HasSubstr("images in an optimizer step"));
  Recipe empty = small();
  empty.train.max_train_steps.reset();
  empty.train.num_train_epochs = 2;
  EXPECT_THAT(usage_fault([&] { resolve_recipe(empty, 2, 2, 0); }), HasSubstr("0 samples"));
}

TEST(RecipeResolve, ResumeOnOtherRanksKeepsTheTotal) {
  Recipe first = small();
  first.train.gradient_accumulation_steps = 4;
  first.train.train_batch_size = 2;
  first.optimizer.scale_lr = true;
  Recipe resumed = first;
  resolve_recipe(first, 3, 3, 100);
  keep_total_batch_size(resumed, first);
  resolve_recipe(resumed, 1, 1, 100);
  EXPECT_EQ(print_recipe(resumed), print_recipe(first));

  Recipe changed = small();
  changed.train.gradient_accumulation_steps = 5;
  changed.train.train_batch_size = 2;
  EXPECT_THAT(usage_fault([&] { keep_total_batch_size(changed, first); }), HasSubstr("which no number of ranks makes"));
  Recipe given = small();
  given.train.total_batch_size = 8;
  keep_total_batch_size(given, first);
  EXPECT_EQ(given.train.total_batch_size, 8);
}

TEST(RecipeIdentity, HoldsWhatChangesTheArithmeticOnly) {
  Recipe recipe = small();
  resolve_recipe(recipe, 1, 1, 100);
  const auto values = identity(recipe);
  EXPECT_EQ(values.at("lora.rank"), "4");
  EXPECT_EQ(values.at("train.total_batch_size"), "1");
  EXPECT_EQ(values.at("optimizer.learning_rate"), "0.0001");
  EXPECT_EQ(values.at("task"), "\"text_to_image\"");
  for (const char* free :
       {"output_dir", "data.train_data_dir", "model.pretrained_model_name_or_path", "data.dataloader_num_workers",
        "checkpoint.checkpointing_steps", "report.report_to", "debug.trace_steps"}) {
    EXPECT_FALSE(values.contains(free)) << free;
  }
}

TEST(RecipeIdentity, LengthCountsOnlyWhereTheScheduleDependsOnIt) {
  for (const auto& [schedule, holds] : {std::pair{"constant", false},
                                        {"constant_with_warmup", false},
                                        {"linear", true},
                                        {"cosine", true},
                                        {"cosine_with_restarts", true},
                                        {"polynomial", true}}) {
    Recipe recipe = small();
    recipe.lr_scheduler.lr_scheduler = schedule;
    EXPECT_EQ(identity(recipe).contains("train.max_train_steps"), holds) << schedule;
  }
}

TEST(RecipeIdentity, ThreadsCountOnlyWhenDeterministic) {
  Recipe recipe = small();
  EXPECT_TRUE(identity(recipe).contains("distributed.threads_per_rank"));
  recipe.train.deterministic = false;
  EXPECT_FALSE(identity(recipe).contains("distributed.threads_per_rank"));
}

TEST(RecipePrint, EveryDoubleReadsBackToTheSameBits) {
  std::mt19937_64 bits(7);
  Recipe recipe = small();
  const double edges[] = {1e-8, 1,   1e300, 5e-324, 0.1, 1.0 / 3, 2.2250738585072014e-308, 123456789012345680.0,
                          1e22, 1e23};
  int tried = 0;
  for (int i = 0; tried < 5000; ++i) {
    double value = i < 10 ? edges[i] : std::bit_cast<double>(bits() & INT64_MAX);
    if (!std::isfinite(value)) continue;
    recipe.optimizer.learning_rate = value;
    const Recipe again = parse_recipe(print_recipe(recipe), "printed");
    ASSERT_EQ(std::bit_cast<uint64_t>(again.optimizer.learning_rate), std::bit_cast<uint64_t>(value)) << value;
    ++tried;
  }
}

TEST(RecipePrint, EveryKeyReadsBack) {
  Recipe recipe = small();
  // Give every member another value than its default, whatever its type; then compare the two printed texts and
  // members.
  recipe.lora.target_modules = {"to_q", "a \"quoted\" one", "tab\t", "back\\slash", "\xc3\xa4"};
  recipe.lora.lora_alpha = 2.5;
  recipe.train.total_batch_size = 64;
  recipe.train.train_batch_size = 4;
  recipe.output_dir = "runs/new\nline\x7f and \x1b";
  recipe.optimizer.scale_lr = recipe.data.center_crop = recipe.data.random_flip = true;
  recipe.report.report_to = {};
  recipe.model.variant = "fp16";
  recipe.seed = INT64_MAX;
  const std::string printed = print_recipe(recipe);
  Recipe again = parse_recipe(printed, "printed");
  EXPECT_EQ(print_recipe(again), printed);
  EXPECT_EQ(again.output_dir, recipe.output_dir);
  EXPECT_EQ(again.lora.target_modules, recipe.lora.target_modules);
  EXPECT_EQ(again.seed, recipe.seed);
  for (const RecipeField& field : recipe_fields(again)) {
    if (value_as_toml(field.member).empty()) continue;
    EXPECT_THAT(printed, HasSubstr(field.key + " = " + value_as_toml(field.member) + "\n"));
  }
}

TEST(RecipeFields, DefaultsPassTheirOwnChecks) {
  Recipe recipe = small();
  std::vector<std::string> names;
  for (const RecipeField& field : recipe_fields(recipe)) {
    EXPECT_TRUE(field.check.holds(field.member)) << field.name();
    EXPECT_TRUE(field.doc.ends_with(".")) << field.name();
    names.push_back(field.name());
  }
  std::sort(names.begin(), names.end());
  EXPECT_EQ(std::unique(names.begin(), names.end()), names.end());
}

TEST(RecipeHelp, ShowsAllATableOrAKey) {
  EXPECT_THAT(recipe_help(""), HasSubstr("\n[lora]\nrank = 4\n"));
  EXPECT_THAT(recipe_help("lora"), HasSubstr("target_modules = "));
  EXPECT_THAT(recipe_help("lora.rank"), HasSubstr("value: an integer, from 1 to 65536"));
  EXPECT_EQ(recipe_help("rank"), recipe_help("lora.rank"));
  EXPECT_THAT(usage_fault([] { recipe_help("rnak"); }), HasSubstr("did you mean 'lora.rank'?"));
}

}  // namespace
}  // namespace lorashard
