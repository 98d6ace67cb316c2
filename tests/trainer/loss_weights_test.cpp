#include "trainer/loss_weights.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace lorashard {
namespace {

DDPMScheduler zero_snr_scheduler(const std::string& prediction_type) {
  return DDPMScheduler({.prediction_type = prediction_type, .rescale_betas_zero_snr = true});
}

TEST(LossWeights, AreFiniteAtPureNoise) {
  const at::Tensor timesteps = at::tensor({0, 500, 999}, at::kLong);
  for (const char* prediction_type : {"epsilon", "v_prediction", "sample"})
    for (const bool dreambooth : {false, true}) {
      const LossOptions options{.snr_gamma = 5.0, .velocity_weight_at_least_one = dreambooth};
      const at::Tensor weights = timestep_weights(zero_snr_scheduler(prediction_type), timesteps, options);
      EXPECT_TRUE(at::isfinite(weights).all().item<bool>()) << prediction_type << '\n' << weights;
      EXPECT_TRUE((weights >= 0).all().item<bool>());
    }
}

TEST(LossWeights, OfVelocitiesAreAtLeastOneInDreamBoothOnly) {
  const DDPMScheduler scheduler({.prediction_type = "v_prediction"});
  const at::Tensor timesteps = at::arange(0, 1000, at::kLong);
  const LossOptions text_to_image{.snr_gamma = 5.0}, dreambooth{.snr_gamma = 5.0, .velocity_weight_at_least_one = true};
  EXPECT_LT(timestep_weights(scheduler, timesteps, text_to_image).max().item<double>(), 1.0);
  const at::Tensor weights = timestep_weights(scheduler, timesteps, dreambooth);
  EXPECT_GE(weights.min().item<double>(), 1.0);
  const at::Tensor snr = scheduler.compute_snr(timesteps);
  EXPECT_TRUE(at::equal(weights, snr.clamp_max(5.0) / snr + 1.0));
}

TEST(LossWeights, HuberIsSquaredNearAndAbsoluteFar) {
  const DDPMScheduler scheduler(DDPMSchedulerConfig{});
  const LossOptions options{.loss_type = "huber", .huber_schedule = "constant", .huber_c = 0.5};
  const at::Tensor timesteps = at::zeros({1}, at::kLong), zero = at::zeros({1, 1, 1, 2});
  const at::Tensor losses =
      elementwise_loss(at::tensor({1e-3F, 1e3F}).view({1, 1, 1, 2}), zero, scheduler, timesteps, options);
  EXPECT_NEAR(losses[0][0][0][0].item<double>(), 1e-6, 1e-7);
  EXPECT_NEAR(losses[0][0][0][1].item<double>(), 2 * 0.5 * (1e3 - 0.5), 1e-2);
}

}  // namespace
}  // namespace lorashard
