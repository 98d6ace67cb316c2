#include "models/lora.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>

#include "dist/error.h"
#include "dist/philox.h"
#include "models/lora_dropout.h"
#include "models/unet_2d_condition.h"

namespace lorashard {
namespace {

using testing::HasSubstr;
using testing::Not;

UNet2DConditionConfig small_config() {
  UNet2DConditionConfig config;
  config.block_out_channels = {16, 32};
  config.down_block_types = {"CrossAttnDownBlock2D", "DownBlock2D"};
  config.up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D"};
  config.transformer_layers_per_block = {1, 1};
  config.attention_head_dim = {2, 2};
  config.layers_per_block = 1;
  config.cross_attention_dim = 24;
  config.norm_num_groups = 4;
  return config;
}

void randomise(torch::nn::Module& module) {
  at::manual_seed(7);
  for (at::Tensor& parameter : module.parameters()) parameter.normal_(0, parameter.dim() > 1 ? 0.05 : 1.0);
}

struct SmallUNet {
  UNet2DConditionModel unet{small_config()};
  LoraAdapter adapter;
  at::Tensor sample = at::randn({2, 4, 8, 8}), text = at::randn({2, 5, 24});
  at::Tensor timesteps = at::tensor({3, 900}, at::kLong);

  explicit SmallUNet(double alpha = 4) {
    randomise(unet);
    LoraOptions options;
    options.alpha = alpha;
    adapter.add("unet", unet, options);
    adapter.allocate(11);
  }
  at::Tensor loss() { return unet.forward(sample, timesteps, text).to(at::kDouble).square().mean(); }
};

std::string message_of(const std::function<void()>& call, ErrorKind kind) {
  try {
    call();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  ADD_FAILURE() << "nothing was thrown";
  return "";
}

TEST(LoraAdapter, ParametersAreViewsOneAfterTheOtherInTheFlatTensor) {
  SmallUNet model;
  const float* next = model.adapter.flat_parameters().data_ptr<float>();
  const float* next_gradient = model.adapter.flat_gradients().data_ptr<float>();
  for (const LoraParameter& parameter : model.adapter.parameters()) {
    EXPECT_EQ(parameter.value.data_ptr<float>(), next) << parameter.key;
    EXPECT_EQ(parameter.gradient.data_ptr<float>(), next_gradient) << parameter.key;
    EXPECT_TRUE(parameter.value.requires_grad());
    EXPECT_TRUE(parameter.value.is_leaf());
    next += parameter.value.numel();
    next_gradient += parameter.value.numel();
  }
  EXPECT_EQ(next - model.adapter.flat_parameters().data_ptr<float>(), model.adapter.num_parameters());
  EXPECT_EQ(model.adapter.modules().size(), 4u * 2u * 4u);  // 4 transformers with 2 attentions of 4 layers
}

TEST(LoraAdapter, DownIsDrawnAsGaussianOfOneOverRankFromPhiloxAndUpIsZero) {
  SmallUNet model;
  for (size_t position = 0; position < model.adapter.modules().size(); ++position) {
    const LoraPair& pair = *model.adapter.modules()[position].layer->lora;
    std::vector<float> expected(static_cast<size_t>(pair.down.numel()));
    fill_normal(expected, 11, position, Purpose::lora_init);
    for (float& value : expected) value *= 0.25f;
    EXPECT_TRUE(at::equal(pair.down.detach().flatten(), at::tensor(expected)));
    EXPECT_EQ(pair.up.detach().abs().max().item<float>(), 0.0f);
  }
}

TEST(LoraAdapter, AFreshAdapterChangesNoBitOfTheOutput) {
  SmallUNet model;
  UNet2DConditionModel plain(small_config());
  randomise(plain);
  const at::Tensor with = model.unet.forward(model.sample, model.timesteps, model.text).detach();
  EXPECT_TRUE(at::equal(with, plain.forward(model.sample, model.timesteps, model.text)));
}

TEST(LoraAdapter, BackwardAddsToTheFlatGradientsPassAfterPass) {
  SmallUNet model;
  model.adapter.flat_parameters().normal_(0, 0.1);
  model.loss().backward();
  const at::Tensor once = model.adapter.flat_gradients().clone();
  EXPECT_GT(once.norm().item<double>(), 0.0);
  for (int i = 0; i < 3; ++i) model.loss().backward();
  // 1e-5, not fp32's 1e-7: the products are added term by term onto what is there, so each pass rounds otherwise (seen: 1.2e-6). A
  // pass that replaced the gradient instead would be off by 0.75 of it.
  EXPECT_LE((model.adapter.flat_gradients() - 4 * once).norm().item<double>(), 1e-5 * once.norm().item<double>());
  for (const LoraParameter& parameter : model.adapter.parameters())
    EXPECT_TRUE(parameter.gradient.is_same(parameter.value.grad())) << parameter.key;
}

TEST(LoraAdapter, TheSameStepGivesTheSameBitsAgain) {
  SmallUNet model;
  model.adapter.flat_parameters().normal_(0, 0.1);
  model.loss().backward();
  const at::Tensor first = model.adapter.flat_gradients().clone();
  model.adapter.flat_gradients().zero_();
  model.loss().backward();
  EXPECT_TRUE(at::equal(first, model.adapter.flat_gradients()));
}

TEST(LoraAdapter, AnUpdateOfTheFlatTensorReachesTheNextForward) {
  SmallUNet model;
  const at::Tensor before = model.loss().detach();
  model.adapter.flat_parameters().add_(0.1);
  EXPECT_NE(model.loss().item<double>(), before.item<double>());
}

TEST(LoraAdapter, TheGradientIsThatOfFiniteDifferences) {
  SmallUNet model(6);
  model.adapter.flat_parameters().normal_(0, 0.1);
  model.loss().backward();
  // Along the gradient, where the difference is largest against the rounding of fp32.
  const at::Tensor direction = model.adapter.flat_gradients() / model.adapter.flat_gradients().norm();
  const double expected = (model.adapter.flat_gradients() * direction).sum().item<double>();
  const double step = 2e-3;
  model.adapter.flat_parameters().add_(direction, step);
  const double above = model.loss().item<double>();
  model.adapter.flat_parameters().add_(direction, -2 * step);
  const double below = model.loss().item<double>();
  EXPECT_NEAR((above - below) / (2 * step), expected, 0.02 * std::abs(expected));
}

TEST(LoraAdapter, TwoComponentsShareOneFlatTensor) {
  UNet2DConditionModel first(small_config()), second(small_config());
  LoraAdapter adapter;
  adapter.add("unet", first, {.rank = 2, .alpha = 2, .target_modules = {"to_q"}});
  const size_t modules = adapter.modules().size();
  adapter.add("text_encoder", second, {.rank = 3, .alpha = 3, .target_modules = {"to_v", "ff.net.2"}});
  adapter.allocate(1);
  EXPECT_EQ(adapter.modules()[modules].component, "text_encoder");
  EXPECT_EQ(adapter.modules()[modules].rank, 3);
  int64_t total = 0;
  for (const LoraParameter& parameter : adapter.parameters()) total += parameter.value.numel();
  EXPECT_EQ(total, adapter.num_parameters());
}

TEST(LoraAdapter, ATargetNoLayerHasIsNamedWithTheLayersThereAre) {
  UNet2DConditionModel unet(small_config());
  LoraAdapter adapter;
  const std::string message = message_of(
      [&] {
        adapter.add("unet", unet, {.target_modules = {"to_q", "to_out"}});
      },
      ErrorKind::usage);
  EXPECT_THAT(message, HasSubstr("'to_out'"));
  EXPECT_THAT(message, HasSubstr("to_out.0"));
}

/// Paths that get a pair, with their ranks.
std::vector<std::pair<std::string, int64_t>> chosen(const LoraOptions& options) {
  UNet2DConditionModel unet(small_config());
  LoraAdapter adapter;
  adapter.add("unet", unet, options);
  adapter.allocate(1);
  std::vector<std::pair<std::string, int64_t>> paths;
  for (const LoraModule& module : adapter.modules()) paths.emplace_back(module.path, module.rank);
  return paths;
}

TEST(LoraAdapter, PresetsAndPatternsChooseLayers) {
  const size_t attention = chosen({.target_modules = {"attention"}}).size();
  EXPECT_EQ(attention, chosen({}).size());
  EXPECT_EQ(chosen({.target_modules = {"attention+ff"}}).size(), attention + 4 * 2);
  const size_t cross = chosen({.target_modules = {"down_blocks.*.attn2.*"}}).size();
  EXPECT_EQ(cross, 4u);
  size_t resnets = 0;
  for (const auto& [path, rank] : chosen({.target_modules = {"conv"}})) {
    EXPECT_THAT(path, testing::AnyOf(HasSubstr("resnets."), HasSubstr("samplers.")));
    resnets += path.find("resnets.") != std::string::npos;
  }
  EXPECT_GT(resnets, 0u);
  for (const auto& [path, rank] : chosen({.target_modules = {"all-linear"}})) EXPECT_THAT(path, Not(HasSubstr("conv")));
}

TEST(LoraAdapter, TheLongestPatternThatFitsGivesTheRank) {
  for (const auto& [path, rank] :
       chosen({.rank = 4, .target_modules = {"attention"}, .rank_pattern = {{"to_q", 8}, {"attn2.to_q", 2}}}))
    EXPECT_EQ(rank, path.ends_with("attn2.to_q") ? 2 : path.ends_with("to_q") ? 8 : 4) << path;
}

TEST(LoraAdapter, APatternThatFitsNoTargetIsNamed) {
  EXPECT_THAT(message_of([] { chosen({.rank_pattern = {{"ff.net.2", 8}}}); }, ErrorKind::usage), HasSubstr("'ff.net.2' of rank_pattern or alpha_pattern fits no layer"));
}

TEST(LoraAdapter, DropoutIsTheSameAgainForTheSameImagesAndAbsentWithoutThem) {
  SmallUNet model;
  model.adapter.flat_parameters().normal_(0, 0.1);
  const at::Tensor whole = model.loss().detach();
  const auto of_images = [&](uint64_t first, uint64_t second) {
    const LoraDropoutRows rows({{.slot = first}, {.slot = second}});
    return model.loss().detach();
  };
  for (double LoraDropout::*kind : {&LoraDropout::p, &LoraDropout::rank_p, &LoraDropout::module_p}) {
    for (const LoraModule& module : model.adapter.modules()) {
      LoraDropout& dropout = module.layer->lora->dropout;
      dropout.p = dropout.rank_p = dropout.module_p = 0;
      dropout.*kind = 0.5;
    }
    EXPECT_TRUE(at::equal(model.loss().detach(), whole));
    EXPECT_FALSE(at::equal(of_images(3, 4), whole));
    EXPECT_TRUE(at::equal(of_images(3, 4), of_images(3, 4)));
    EXPECT_FALSE(at::equal(of_images(3, 4), of_images(3, 5)));
  }
}

TEST(LoraAdapter, RankAndModuleDropoutAreRefusedWithDora) {
  UNet2DConditionModel unet(small_config());
  LoraAdapter adapter;
  EXPECT_THAT(message_of([&] { adapter.add("unet", unet, {.rank_dropout = 0.1, .use_dora = true}); }, ErrorKind::usage),
              HasSubstr("for plain pairs"));
  EXPECT_THAT(message_of([&] { adapter.add("unet", unet, {.module_dropout = 1}); }, ErrorKind::usage),
              HasSubstr("expected module_dropout in [0, 1), found 1"));
}

TEST(LoraAdapter, RankZeroAndNoTargetsAreRefused) {
  UNet2DConditionModel unet(small_config());
  LoraAdapter adapter;
  EXPECT_THAT(message_of([&] { adapter.add("unet", unet, {.rank = 0}); }, ErrorKind::usage), HasSubstr("rank >= 1"));
  EXPECT_THAT(message_of([&] { adapter.add("unet", unet, {.target_modules = {}}); }, ErrorKind::usage),
              HasSubstr("target_modules is empty"));
}

}  // namespace
}  // namespace lorashard
