// What [dreambooth] asks for, and what it refuses: keys that would do nothing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"
#include "trainer/first_use_pack.h"
#include "trainer/recipe.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

constexpr const char* kDreamBooth = R"(
task = "dreambooth"
output_dir = "out"
[model]
pretrained_model_name_or_path = "base"
[train]
max_train_steps = 5
[dreambooth]
instance_data_dir = "dog"
instance_prompt = "a photo of sks dog"
)";

constexpr const char* kTextToImage = R"(
output_dir = "out"
[model]
pretrained_model_name_or_path = "base"
[data]
train_data_dir = "pack"
[train]
max_train_steps = 5
)";

std::string fault(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  try {
    parse_recipe(toml, "recipe.toml", overrides);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  return "";
}

TEST(DreamBoothRules, InstancePicturesAndPromptAreEnough) {
  const Recipe recipe = parse_recipe(kDreamBooth, "recipe.toml");
  EXPECT_EQ(recipe.dreambooth.num_class_images, 100);
  EXPECT_EQ(recipe.dreambooth.prior_loss_weight, 1.0);
  EXPECT_EQ(training_pictures(recipe).folder, "dog");
  EXPECT_EQ(training_pictures(recipe).pack, "out/pack");
}

TEST(DreamBoothRules, WhatIsPrintedIsReadBack) {
  Recipe recipe = parse_recipe(kDreamBooth, "recipe.toml");
  resolve_recipe(recipe, 2, 2, 5);
  const std::string printed = print_recipe(recipe);
  EXPECT_EQ(print_recipe(parse_recipe(printed, "printed")), printed);
}

TEST(DreamBoothRules, BothOfThemAreRequired) {
  EXPECT_THAT(fault(kDreamBooth, {"dreambooth.instance_prompt=''"}), HasSubstr("'dreambooth.instance_prompt' is missing"));
  EXPECT_THAT(fault(kDreamBooth, {"dreambooth.instance_data_dir=''"}),
              HasSubstr("'dreambooth.instance_data_dir' is missing"));
}

TEST(DreamBoothRules, PriorPreservationNeedsFolderAndPrompt) {
  const std::string with = "dreambooth.with_prior_preservation=true";
  EXPECT_THAT(fault(kDreamBooth, {with}), HasSubstr("'dreambooth.class_data_dir' is missing"));
  EXPECT_THAT(fault(kDreamBooth, {with, "dreambooth.class_data_dir='c'"}),
              HasSubstr("'dreambooth.class_prompt' is missing"));
  EXPECT_EQ(fault(kDreamBooth, {with, "dreambooth.class_data_dir='c'", "dreambooth.class_prompt='a dog'"}), "");
}

TEST(DreamBoothRules, KeysThatWouldDoNothingAreRefused) {
  for (const std::string key : {"class_data_dir='c'", "class_prompt='a dog'", "num_class_images=7", "prior_loss_weight=0.5"}) {
    EXPECT_THAT(fault(kDreamBooth, {"dreambooth." + key}),
                HasSubstr("has no effect without dreambooth.with_prior_preservation"))
        << key;
  }
  EXPECT_THAT(fault(kTextToImage, {"dreambooth.instance_prompt='a photo of sks dog'"}),
              HasSubstr("'dreambooth.instance_prompt' has no effect without task = \"dreambooth\""));
  EXPECT_THAT(fault(kTextToImage, {"dreambooth.prior_loss_weight=2"}), HasSubstr("'dreambooth.prior_loss_weight'"));
  EXPECT_THAT(fault(kDreamBooth, {"data.train_data_dir='pictures'"}),
              HasSubstr("'data.train_data_dir' is not read with task = \"dreambooth\""));
  EXPECT_THAT(fault(kDreamBooth, {"data.caption_column='prompt'"}), HasSubstr("dreambooth.custom_instance_prompts = true"));
  EXPECT_EQ(fault(kDreamBooth, {"data.caption_column='prompt'", "dreambooth.custom_instance_prompts=true"}), "");
  EXPECT_THAT(fault(kTextToImage, {"lora.text_encoder_target_modules=['q_proj']"}),
              HasSubstr("has no effect without lora.train_text_encoder = true"));
  EXPECT_EQ(fault(kTextToImage, {"lora.text_encoder_target_modules=['q_proj']", "lora.train_text_encoder=true"}), "");
}

}  // namespace
}  // namespace lorashard
