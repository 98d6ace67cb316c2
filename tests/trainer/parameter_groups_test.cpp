#include "trainer/parameter_groups.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"
#include "models/unet_2d_condition.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// An adapter of a small UNet's attention layers; a second one of it stands for a text encoder.
struct SmallAdapter {
  UNet2DConditionModel unet{config()}, text_encoder{config()};
  LoraAdapter adapter;

  explicit SmallAdapter(bool with_text_encoder = false) {
    adapter.add("unet", unet, {});
    if (with_text_encoder) adapter.add("text_encoder", text_encoder, {});
    adapter.allocate(11);
  }
  static UNet2DConditionConfig config() {
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
};

std::vector<std::string> names_of(const std::vector<ParameterGroup>& groups) {
  std::vector<std::string> names;
  for (const ParameterGroup& group : groups) names.push_back(group.name);
  return names;
}

/// How many groups hold each element of the flat tensor.
at::Tensor times_held(const LoraAdapter& adapter, const std::vector<ParameterGroup>& groups) {
  const at::Tensor held = at::zeros({adapter.num_parameters()});
  for (const ParameterGroup& group : groups)
    for (const at::Tensor& range : group.ranges_of(held)) range.add_(1);
  return held;
}

std::string refusal(const LoraAdapter& adapter, const Recipe::Optimizer& options) {
  try {
    parameter_groups(adapter, options);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    return error.what();
  }
  ADD_FAILURE() << "nothing thrown";
  return "";
}

TEST(ParameterGroups, WithoutSettingsOneGroupIsTheWholeFlatTensor) {
  const SmallAdapter small;
  const auto groups = parameter_groups(small.adapter, {});
  ASSERT_EQ(names_of(groups), std::vector<std::string>{"unet"});
  EXPECT_EQ(groups[0].learning_rate, 1e-4);
  EXPECT_EQ(groups[0].weight_decay, 1e-2);
  ASSERT_EQ(groups[0].ranges_of(small.adapter.flat_parameters()).size(), 1u);
  EXPECT_EQ(groups[0].tensors.size(), 2 * small.adapter.modules().size());
}

TEST(ParameterGroups, TheTextEncoderHasItsOwnRateAndDecay) {
  const SmallAdapter small(/*with_text_encoder=*/true);
  Recipe::Optimizer options;
  options.text_encoder_lr = 5e-6;
  options.adam_weight_decay_text_encoder = 1e-3;
  const auto groups = parameter_groups(small.adapter, options);
  ASSERT_THAT(names_of(groups), ElementsAre("unet", "text_encoder"));
  EXPECT_EQ(groups[0].learning_rate, 1e-4);
  EXPECT_EQ(groups[1].learning_rate, 5e-6);
  EXPECT_EQ(groups[1].weight_decay, 1e-3);
  EXPECT_TRUE((times_held(small.adapter, groups) == 1).all().item<bool>());
  options.optimizer = "prodigy";  // one rate for all
  EXPECT_EQ(parameter_groups(small.adapter, options)[1].learning_rate, 1e-4);
}

TEST(ParameterGroups, LoraPlusAndPatternsCombineAndTheLongestPatternCounts) {
  const SmallAdapter small;
  Recipe::Optimizer options;
  options.loraplus_lr_ratio = 16;
  options.lr_pattern = {{"attn2", 1e-5}, {"attn2.to_k", 2e-5}};
  const auto groups = parameter_groups(small.adapter, options);
  EXPECT_TRUE((times_held(small.adapter, groups) == 1).all().item<bool>());
  EXPECT_THAT(names_of(groups), testing::UnorderedElementsAre("unet", "unet.up", "unet:attn2", "unet:attn2.up",
                                                              "unet:attn2.to_k", "unet:attn2.to_k.up"));
  const std::vector<LoraParameter> parameters = small.adapter.parameters();
  for (const LoraParameter& parameter : parameters) {
    const std::string& path = small.adapter.modules()[parameter.module].path;
    double rate = path.find("attn2") == std::string::npos ? 1e-4 : path.ends_with("attn2.to_k") ? 2e-5 : 1e-5;
    if (parameter.part == LoraPart::up) rate *= 16;
    for (const ParameterGroup& group : groups) {
      for (const FlatTensor& tensor : group.tensors) {
        if (tensor.offset != parameter.value.storage_offset()) continue;
        EXPECT_EQ(group.learning_rate, rate) << parameter.key;
      }
    }
  }
}

TEST(ParameterGroups, APatternIsWholeNames) {
  const SmallAdapter small;
  Recipe::Optimizer options;
  options.lr_pattern = {{"ttn2", 1e-5}};
  EXPECT_THAT(refusal(small.adapter, options), HasSubstr("ttn2"));
  options.lr_pattern = {{"to_out.0", 1e-5}};
  EXPECT_EQ(parameter_groups(small.adapter, options).size(), 2u);
}

TEST(ParameterGroups, WhatSetsNothingIsRefused) {
  const SmallAdapter small;
  Recipe::Optimizer rate, decay, magnitude;
  rate.text_encoder_lr = 1e-5;
  decay.adam_weight_decay_text_encoder = 0.0;
  magnitude.adam_weight_decay_magnitude = 0.0;
  EXPECT_THAT(refusal(small.adapter, rate), HasSubstr("'optimizer.text_encoder_lr' is set, but no text encoder"));
  EXPECT_THAT(refusal(small.adapter, decay), HasSubstr("adam_weight_decay_text_encoder"));
  EXPECT_THAT(refusal(small.adapter, magnitude), HasSubstr("not DoRA"));
}

}  // namespace
}  // namespace lorashard
