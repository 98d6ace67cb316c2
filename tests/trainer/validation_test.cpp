#include "trainer/validation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::Contains;
using testing::ElementsAre;
using testing::IsEmpty;

std::vector<int64_t> due_steps(const Recipe& recipe, int64_t num_samples) {
  std::vector<int64_t> steps;
  for (int64_t step = 0; step <= *recipe.train.max_train_steps; ++step)
    if (validation_due(recipe, num_samples, step)) steps.push_back(step);
  return steps;
}

Recipe recipe_of(int64_t steps, int64_t images_a_step) {
  Recipe recipe;
  recipe.train.max_train_steps = steps;
  recipe.train.total_batch_size = images_a_step;
  recipe.validation.validation_prompt.texts = {"a house"};
  return recipe;
}

TEST(Validation, WithoutAPromptAndASplitNothingIsDue) {
  Recipe recipe = recipe_of(10, 4);
  recipe.validation.validation_prompt.texts.clear();
  recipe.validation.at_start = true;
  EXPECT_THAT(due_steps(recipe, 8), IsEmpty());
  recipe.validation.validation_split = 0.1;
  EXPECT_THAT(due_steps(recipe, 8), Contains(10)) << "the loss on held-out pictures needs no prompt";
}

TEST(Validation, StepsAreCountedFromOneAndTheLastIsIn) {
  Recipe recipe = recipe_of(10, 4);
  recipe.validation.validation_steps = 3;
  EXPECT_THAT(due_steps(recipe, 8), ElementsAre(3, 6, 9, 10));
  recipe.validation.at_start = true;
  recipe.validation.at_end = false;
  EXPECT_THAT(due_steps(recipe, 8), ElementsAre(0, 3, 6, 9));
}

TEST(Validation, AnEpochEndsWithTheStepThatHasSeenItsLastImage) {
  Recipe recipe = recipe_of(9, 4);
  recipe.validation.at_end = false;
  // 10 pictures: epochs end at images 10, 20, 30, in steps of 4 images.
  EXPECT_THAT(due_steps(recipe, 10), ElementsAre(3, 5, 8));
  recipe.validation.validation_epochs = 2;
  EXPECT_THAT(due_steps(recipe, 10), ElementsAre(5));
  // A step that sees several epochs makes its pictures once.
  recipe.validation.validation_epochs = 1;
  EXPECT_THAT(due_steps(recipe, 2), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8, 9));
}

TEST(Validation, DreamBoothCountsFiftyEpochsWhereNothingIsSaid) {
  Recipe recipe = recipe_of(120, 1);
  recipe.task = "dreambooth";
  recipe.validation.at_end = false;
  EXPECT_THAT(due_steps(recipe, 2), ElementsAre(100));
}

TEST(Validation, TheNewestSheetIsThatOfTheHighestStep) {
  const TempDir folder;
  EXPECT_FALSE(newest_sample_sheet(folder.path()));
  std::filesystem::create_directories(folder.path() / "samples" / "step-000900");
  for (const char* name : {"step-000090.png", "step-1000000.png", "step-000500.png", "step-x.png", "other.png"})
    std::ofstream(folder.path() / "samples" / name) << "png";
  EXPECT_EQ(newest_sample_sheet(folder.path()), sample_sheet(folder.path(), 1000000));
}

}  // namespace
}  // namespace lorashard
