#include "models/ddpm_scheduler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(DDPMScheduler, DefaultScheduleIsStableDiffusions) {
  const at::Tensor acp = DDPMScheduler(DDPMSchedulerConfig{}).alphas_cumprod();
  ASSERT_EQ(acp.sizes(), at::IntArrayRef({1000}));
  double product = 1;
  for (int i = 0; i < 1000; ++i) {
    const double root = std::sqrt(0.00085) + (std::sqrt(0.012) - std::sqrt(0.00085)) * i / 999;
    product *= 1 - root * root;
    ASSERT_NEAR(acp[i].item<double>() / product, 1, 2e-5) << "timestep " << i;  // 1000 roundings to fp32
  }
}

TEST(DDPMScheduler, NoisyLatentsAndVelocityRotateBackToLatentsAndNoise) {
  const DDPMScheduler scheduler(DDPMSchedulerConfig{});
  at::manual_seed(1);
  const at::Tensor latents = at::randn({3, 4, 5, 6}), noise = at::randn({3, 4, 5, 6});
  const at::Tensor timesteps = at::tensor({0, 500, 999}, at::kLong);
  const at::Tensor noisy = scheduler.add_noise(latents, noise, timesteps);
  const at::Tensor velocity = scheduler.get_velocity(latents, noise, timesteps);
  const at::Tensor acp = scheduler.alphas_cumprod().index_select(0, timesteps).view({3, 1, 1, 1});
  EXPECT_TRUE(at::allclose(acp.sqrt() * noisy - (1 - acp).sqrt() * velocity, latents, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose((1 - acp).sqrt() * noisy + acp.sqrt() * velocity, noise, 1e-5, 1e-6));
}

TEST(DDPMScheduler, TargetFollowsThePredictionType) {
  at::manual_seed(2);
  const at::Tensor latents = at::randn({2, 4, 3, 3}), noise = at::randn({2, 4, 3, 3});
  const at::Tensor timesteps = at::tensor({10, 990}, at::kLong);
  DDPMSchedulerConfig config;
  EXPECT_TRUE(DDPMScheduler(config).target(latents, noise, timesteps).equal(noise));
  config.prediction_type = "sample";
  EXPECT_TRUE(DDPMScheduler(config).target(latents, noise, timesteps).equal(latents));
  config.prediction_type = "v_prediction";
  const DDPMScheduler velocity(config);
  EXPECT_TRUE(velocity.target(latents, noise, timesteps).equal(velocity.get_velocity(latents, noise, timesteps)));
}

TEST(DDPMScheduler, ZeroTerminalSnrEndsInPureNoise) {
  DDPMSchedulerConfig config;
  config.rescale_betas_zero_snr = true;
  const DDPMScheduler scheduler(config);
  const at::Tensor timesteps = at::tensor({0, 999}, at::kLong);
  const at::Tensor snr = scheduler.compute_snr(timesteps);
  EXPECT_EQ(snr[1].item<float>(), 0.0f);
  EXPECT_NEAR(snr[0].item<double>(), 0.99915 / 0.00085, 2);
  const at::Tensor noise = at::randn({2, 1, 2, 2});
  EXPECT_TRUE(scheduler.add_noise(at::ones({2, 1, 2, 2}), noise, timesteps)[1].equal(noise[1]));
}

TEST(DDPMScheduler, UnknownNamesAreBadDataThatNameThem) {
  const auto kind_of = [](const DDPMSchedulerConfig& config, const std::string& named) {
    try {
      DDPMScheduler{config};
    } catch (const Error& error) {
      EXPECT_NE(error.message().find("'" + named + "'"), std::string::npos) << error.message();
      return error.kind();
    }
    return ErrorKind::internal;
  };
  DDPMSchedulerConfig betas, prediction;
  betas.beta_schedule = "cubic";
  prediction.prediction_type = "flow";
  EXPECT_EQ(kind_of(betas, "cubic"), ErrorKind::bad_data);
  EXPECT_EQ(kind_of(prediction, "flow"), ErrorKind::bad_data);
}

}  // namespace
}  // namespace lorashard
