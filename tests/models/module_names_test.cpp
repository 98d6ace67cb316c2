#include "models/module_names.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "models/adapter_keys.h"
#include "models/layers.h"
#include "models/unet_2d_condition.h"

namespace lorashard {
namespace {

std::vector<std::string> layers_of(const torch::nn::Module& model) {
  std::vector<std::string> paths;
  for (const auto& item : model.named_modules("", /*include_self=*/false))
    if (dynamic_cast<const AdaptableLayer*>(item.value().get())) paths.push_back(item.key());
  return paths;
}

UNet2DConditionConfig narrow() {
  UNet2DConditionConfig config;
  config.block_out_channels = {8, 8, 8, 8};
  config.attention_head_dim = {1, 1, 1, 1};
  config.norm_num_groups = 4;
  config.cross_attention_dim = 8;
  return config;
}

TEST(ModuleNames, EveryLayerOfSdIsKnownByBothItsNames) {
  const ModuleNames& names = ModuleNames::standard();
  ModuleNames own;
  const auto paths = layers_of(UNet2DConditionModel(narrow()));
  own.add("unet", paths);
  EXPECT_GT(paths.size(), 250u);
  for (const std::string& path : paths) {
    EXPECT_TRUE(in_sd_unet(path)) << path;
    EXPECT_EQ(names.find("unet", path), path);
    EXPECT_EQ(names.find("unet", flattened(path)), path);
    EXPECT_EQ(names.find("unet", own.sgm_name(path)), path) << own.sgm_name(path);
  }
}

TEST(ModuleNames, OriginalNamesOfSdxl) {
  const ModuleNames& names = ModuleNames::standard();
  const auto name = [&](const char* path) { return names.sgm_name(path); };
  EXPECT_EQ(name("down_blocks.1.attentions.0.proj_in"), "input_blocks.4.1.proj_in");
  EXPECT_EQ(name("down_blocks.0.downsamplers.0.conv"), "input_blocks.3.0.op");
  EXPECT_EQ(name("mid_block.resnets.1.conv2"), "middle_block.2.out_layers.3");
  EXPECT_EQ(name("up_blocks.0.upsamplers.0.conv"), "output_blocks.2.2.conv");
  EXPECT_EQ(name("up_blocks.2.resnets.2.time_emb_proj"), "output_blocks.8.0.emb_layers.1");
  EXPECT_EQ(name("add_embedding.linear_2"), "label_emb.0.2");
}

TEST(AdapterKeys, AreTakenApart) {
  const auto key = split_adapter_key("base_model.model.unet.down_blocks.0.resnets.0.conv1.lora_A.weight");
  ASSERT_TRUE(key);
  EXPECT_EQ(key->component, "unet");
  EXPECT_EQ(key->module, "down_blocks.0.resnets.0.conv1");
  EXPECT_EQ(key->tensor, "down");
  const auto old = split_adapter_key("text_encoder.text_model.encoder.layers.3.self_attn.to_out_lora.up.weight");
  ASSERT_TRUE(old);
  EXPECT_EQ(old->module, "text_model.encoder.layers.3.self_attn.out_proj");
  EXPECT_FALSE(split_adapter_key("unet.conv_in.weight"));
  EXPECT_FALSE(split_adapter_key(".alpha"));
}

}  // namespace
}  // namespace lorashard
