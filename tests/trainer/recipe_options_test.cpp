#include "trainer/recipe_options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

constexpr char kSmall[] =
    "output_dir = \"out\"\n[model]\npretrained_model_name_or_path = \"base\"\n[data]\ntrain_data_dir = \"pack\"\n"
    "[train]\nmax_train_steps = 1\n";

Recipe small(const std::vector<std::string>& overrides) { return parse_recipe(kSmall, "small.toml", overrides); }

/// The text of the Error(usage) that `f` throws.
template <class F>
std::string usage_fault(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  return "no error";
}

TEST(RecipeOptions, DefaultsChangeNothing) {
  const LossOptions loss = loss_options(small({}), DDPMSchedulerConfig{});
  EXPECT_FALSE(loss.weighs_timesteps() || loss.masked_loss || loss.noise_offset != 0 || loss.input_perturbation != 0);
  EXPECT_EQ(loss.loss_type, "l2");
  EXPECT_FALSE(changes_captions(caption_options(small({}))));
}

TEST(RecipeOptions, LossesThatThePredictionHasNoFormulaForAreRefused) {
  const auto fault = [](const std::string& key, const std::string& value, const std::string& prediction_type) {
    DDPMSchedulerConfig scheduler;
    scheduler.prediction_type = prediction_type;
    return usage_fault([&] { loss_options(small({key + "=" + value}), scheduler); });
  };
  EXPECT_THAT(fault("loss.scale_v_pred_loss_like_noise_pred", "true", "epsilon"), HasSubstr("v_prediction"));
  EXPECT_THAT(fault("loss.v_pred_like_loss", "0.5", "v_prediction"), HasSubstr("'loss.v_pred_like_loss'"));
  EXPECT_THAT(fault("loss.debiased_estimation_loss", "true", "sample"), HasSubstr("'sample'"));
  EXPECT_THAT(fault("train.do_edm_style_training", "true", "sample"), HasSubstr("'train.do_edm_style_training'"));
  EXPECT_EQ(fault("loss.debiased_estimation_loss", "true", "v_prediction"), "no error");
}

TEST(RecipeOptions, EdmStyleTrainingWeighsByItself) {
  EXPECT_THAT(usage_fault([] { small({"train.do_edm_style_training=true", "train.snr_gamma=5.0"}); }),
              HasSubstr("weighs timesteps by itself"));
}

}  // namespace
}  // namespace lorashard
