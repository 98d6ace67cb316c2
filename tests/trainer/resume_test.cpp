#include "trainer/resume.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// A recipe that leaves to the start all that a start can derive.
Recipe derived() {
  Recipe recipe;
  recipe.output_dir = "runs/a";
  recipe.model.pretrained_model_name_or_path = "base";
  recipe.data.train_data_dir = "pack";
  recipe.train.gradient_accumulation_steps = 4;
  recipe.train.num_train_epochs = 2;
  recipe.optimizer.scale_lr = true;
  return recipe;
}

TrainingState saved_by(Recipe recipe, int world_size) {
  resolve_recipe(recipe, world_size, world_size, 100);
  TrainingState state;
  state.recipe = print_recipe(recipe);
  state.pack_hash = "pack hash";
  state.base_hash = "base hash";
  return state;
}

Recipe resumed(Recipe recipe, const TrainingState& saved, int world_size) {
  adopt_resolved_values(recipe, saved);
  resolve_recipe(recipe, world_size, world_size, 100);
  return recipe;
}

std::string refusal(const Recipe& recipe, const TrainingState& saved, const std::string& pack = "pack hash",
                    const std::string& base = "base hash") {
  try {
    require_same_run(recipe, pack, base, saved, "checkpoint-5");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  return "";
}

TEST(Resume, OnOtherHardwareIsRefusedWhereBitsMatter) {
  Recipe recipe = derived();
  TrainingState saved = saved_by(recipe, 1);
  const std::string here = "processor: A\ninstruction set in use: AVX2\n";
  const auto said = [&](const Recipe& now, const std::string& there) {
    saved.arithmetic = there;
    testing::internal::CaptureStderr();
    std::string refused;
    try {
      require_same_hardware(now, here, saved, "checkpoint-5");
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      refused = error.what();
    }
    return std::pair(refused, testing::internal::GetCapturedStderr());
  };
  const std::string other = "processor: A\ninstruction set in use: AVX512\n";
  const auto difference = HasSubstr("'instruction set in use: AVX512' there, 'instruction set in use: AVX2' here");
  EXPECT_THAT(said(recipe, other).first, AllOf(HasSubstr("checkpoint-5"), difference, HasSubstr("resume_on_other_hardware")));
  EXPECT_THAT(said(recipe, here + "GPU: B\n").first, HasSubstr("'GPU: B' there, nothing here"));
  EXPECT_EQ(said(recipe, here), std::pair(std::string(), std::string()));
  EXPECT_EQ(said(recipe, ""), std::pair(std::string(), std::string())) << "a checkpoint that doesn't say";
  recipe.checkpoint.resume_on_other_hardware = true;
  EXPECT_EQ(said(recipe, other).first, "");
  EXPECT_THAT(said(recipe, other).second, AllOf(HasSubstr("warning"), difference));
  recipe.checkpoint.resume_on_other_hardware = false;
  saved.program = "another";
  EXPECT_EQ(said(recipe, here).first, "");
  EXPECT_THAT(said(recipe, here).second, HasSubstr("another build of lorashard"));
  recipe.train.deterministic = false;
  EXPECT_EQ(said(recipe, other), std::pair(std::string(), std::string()));
}

TEST(Resume, OtherRanksKeepTotalLengthAndLearningRate) {
  const TrainingState saved = saved_by(derived(), 3);
  for (const int world_size : {1, 2, 3, 7}) {
    const Recipe recipe = resumed(derived(), saved, world_size);
    EXPECT_EQ(print_recipe(recipe), saved.recipe) << world_size << " ranks";
    EXPECT_EQ(refusal(recipe, saved), "");
  }
}

TEST(Resume, MoreEpochsExtendARunOfConstantLearningRate) {
  const TrainingState saved = saved_by(derived(), 1);
  Recipe longer = derived();
  longer.train.num_train_epochs = 4;
  const Recipe recipe = resumed(longer, saved, 2);
  EXPECT_EQ(recipe.train.max_train_steps, 100);
  EXPECT_EQ(refusal(recipe, saved), "");
}

TEST(Resume, LengthIsRefusedWhereTheScheduleDependsOnIt) {
  Recipe cosine = derived();
  cosine.lr_scheduler.lr_scheduler = "cosine";
  const TrainingState saved = saved_by(cosine, 1);
  cosine.train.num_train_epochs = 4;
  EXPECT_THAT(refusal(resumed(cosine, saved, 1), saved),
              HasSubstr("'train.max_train_steps' was 50 there and is 100 now"));
}

TEST(Resume, AnotherLearningRateIsRefusedAlsoWhenItIsScaled) {
  const TrainingState saved = saved_by(derived(), 1);
  Recipe other = derived();
  other.optimizer.learning_rate = 1.0;
  EXPECT_THAT(refusal(resumed(other, saved, 1), saved),
              AllOf(HasSubstr("'optimizer.learning_rate' was 0.0004 there and is 4.0 now"), HasSubstr("hint:")));
}

TEST(Resume, AccumulationThatCannotGiveTheSavedTotalIsRefused) {
  const TrainingState saved = saved_by(derived(), 3);
  Recipe other = derived();
  other.train.gradient_accumulation_steps = 5;
  EXPECT_THROW(resumed(other, saved, 1), Error);
}

TEST(Resume, FreeKeysMayChange) {
  const TrainingState saved = saved_by(derived(), 1);
  Recipe other = derived();
  other.output_dir = "elsewhere";
  other.data.train_data_dir = "the same pack at another place";
  other.data.dataloader_num_workers = 7;
  other.checkpoint.checkpointing_steps = 3;
  EXPECT_EQ(refusal(resumed(other, saved, 1), saved), "");
}

TEST(Resume, AnotherPackOrBaseIsRefused) {
  const TrainingState saved = saved_by(derived(), 1);
  const Recipe recipe = resumed(derived(), saved, 1);
  EXPECT_THAT(refusal(recipe, saved, "other"), HasSubstr("the pack 'pack'"));
  EXPECT_THAT(refusal(recipe, saved, "pack hash", "other"), HasSubstr("the base model 'base'"));
}

}  // namespace
}  // namespace lorashard
