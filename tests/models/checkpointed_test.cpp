// Gradient checkpointing held against keeping everything: the same bits, and no less work done in between.
#include "models/checkpointed.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "models/lora.h"
#include "models/lora_dropout.h"
#include "models/unet_2d_condition.h"

namespace lorashard {
namespace {

UNet2DConditionConfig small_config() {
  UNet2DConditionConfig config;
  config.block_out_channels = {16, 32};
  config.down_block_types = {"CrossAttnDownBlock2D", "DownBlock2D"};
  config.up_block_types = {"UpBlock2D", "CrossAttnUpBlock2D"};
  config.transformer_layers_per_block = {2, 1};
  config.attention_head_dim = {2, 2};
  config.layers_per_block = 1;
  config.cross_attention_dim = 24;
  config.norm_num_groups = 4;
  return config;
}

struct Outcome {
  at::Tensor output, gradients, text_gradient;
};

Outcome run(bool gradient_checkpointing, const std::vector<std::string>& targets, double dropout, bool trained_text) {
  UNet2DConditionModel unet(small_config());
  at::manual_seed(4);
  {
    const at::NoGradGuard no_grad;
    for (at::Tensor& parameter : unet.parameters()) parameter.normal_(0, parameter.dim() > 1 ? 0.05 : 1.0);
  }
  LoraAdapter adapter;
  adapter.add("unet", unet, {.rank = 3, .alpha = 3, .dropout = dropout, .target_modules = targets});
  adapter.allocate(7);
  {
    const at::NoGradGuard no_grad;
    adapter.flat_parameters().add_(at::randn_like(adapter.flat_parameters()) * 0.1);
  }
  if (gradient_checkpointing) unet.enable_gradient_checkpointing();
  const at::Tensor sample = at::randn({2, 4, 8, 8});
  at::Tensor text = at::randn({2, 5, 24});
  text.set_requires_grad(trained_text);
  const LoraDropoutRows rows({{.slot = 0}, {.slot = 1}});
  adapter.flat_gradients().zero_();
  Outcome out;
  out.output = unet.forward(sample, at::tensor({3, 700}, at::kLong), text);
  out.output.square().mean().backward();
  out.gradients = adapter.flat_gradients().clone();
  if (trained_text) out.text_gradient = text.grad();
  return out;
}

TEST(Checkpointed, GivesTheSameBitsAsKeepingEverything) {
  for (const std::vector<std::string>& targets : {std::vector<std::string>{"to_q", "to_v"}, {"to_k", "conv1", "time_emb_proj"}}) {
    const Outcome kept = run(false, targets, 0, false), again = run(true, targets, 0, false);
    EXPECT_TRUE(at::equal(kept.output, again.output));
    EXPECT_TRUE(at::equal(kept.gradients, again.gradients));
    EXPECT_GT(kept.gradients.abs().min().item<double>() + kept.gradients.norm().item<double>(), 0);
  }
}

TEST(Checkpointed, DrawsTheSameDropoutAgain) {
  const Outcome kept = run(false, {"to_q", "to_v"}, 0.3, false), again = run(true, {"to_q", "to_v"}, 0.3, false);
  EXPECT_TRUE(at::equal(kept.gradients, again.gradients));
  EXPECT_FALSE(at::equal(kept.gradients, run(false, {"to_q", "to_v"}, 0, false).gradients)) << "nothing was dropped";
}

TEST(Checkpointed, GivesTheTextItsGradient) {
  const Outcome kept = run(false, {"to_q"}, 0, true), again = run(true, {"to_q"}, 0, true);
  EXPECT_TRUE(at::equal(kept.text_gradient, again.text_gradient));
  EXPECT_TRUE(at::equal(kept.gradients, again.gradients));
}

TEST(Checkpointed, WithoutRecordingIsThePlainCall) {
  const at::NoGradGuard no_grad;
  int calls = 0;
  const at::Tensor one = at::ones({2});
  const at::Tensor result = checkpointed({one}, [&](const auto& in) {
    ++calls;
    return in[0] + 1;
  });
  EXPECT_EQ(calls, 1);
  EXPECT_FALSE(result.requires_grad());
}

TEST(Checkpointed, ComputesAgainInBackwardOnceAndPassesUndefinedInputsThrough) {
  int calls = 0;
  at::Tensor x = at::ones({2});
  x.set_requires_grad(true);
  const at::Tensor result = checkpointed({x, {}}, [&](const auto& in) {
    ++calls;
    EXPECT_FALSE(in[1].defined());
    return in[0] * in[0] * 3;
  });
  EXPECT_EQ(calls, 1);
  result.sum().backward();
  EXPECT_EQ(calls, 2);
  EXPECT_TRUE(at::equal(x.grad(), at::full({2}, 6.0)));
}

}  // namespace
}  // namespace lorashard
