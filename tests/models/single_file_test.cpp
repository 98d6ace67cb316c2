#include "models/single_file.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"
#include "models/single_file_keys.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using ::testing::HasSubstr;
using ::testing::Optional;

TEST(SingleFileKeys, UnetKeysOfThePublishedFiles) {
  const char* cases[][2] = {
      {"time_embed.0.weight", "time_embedding.linear_1.weight"},
      {"label_emb.0.2.bias", "add_embedding.linear_2.bias"},
      {"input_blocks.0.0.weight", "conv_in.weight"},
      {"input_blocks.1.0.in_layers.0.weight", "down_blocks.0.resnets.0.norm1.weight"},
      {"input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"},
      {"input_blocks.4.0.skip_connection.bias", "down_blocks.1.resnets.0.conv_shortcut.bias"},
      {"input_blocks.8.1.transformer_blocks.0.attn2.to_k.weight",
       "down_blocks.2.attentions.1.transformer_blocks.0.attn2.to_k.weight"},
      {"middle_block.0.emb_layers.1.weight", "mid_block.resnets.0.time_emb_proj.weight"},
      {"middle_block.1.norm.bias", "mid_block.attentions.0.norm.bias"},
      {"middle_block.2.out_layers.3.weight", "mid_block.resnets.1.conv2.weight"},
      {"output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"},
      {"output_blocks.5.2.conv.bias", "up_blocks.1.upsamplers.0.conv.bias"},
      {"output_blocks.11.1.proj_out.weight", "up_blocks.3.attentions.2.proj_out.weight"},
      {"out.2.weight", "conv_out.weight"}};
  for (const auto& [original, expected] : cases) EXPECT_THAT(diffusers_unet_key(original, 2), Optional(std::string(expected)));
  for (const char* odd : {"input_blocks.1", "input_blocks.1.0", "input_blocks.x.0.weight", "input_blocks.1.0.odd.weight", "out.1.weight",
                          "middle_block.3.in_layers.0.weight", "input_blocks.1.3.weight", "blocks.0.weight", ""})
    EXPECT_EQ(diffusers_unet_key(odd, 2), std::nullopt) << odd;
}

TEST(SingleFileKeys, VaeKeysOfThePublishedFiles) {
  const char* cases[][2] = {
      {"encoder.down.1.block.0.nin_shortcut.weight", "encoder.down_blocks.1.resnets.0.conv_shortcut.weight"},
      {"encoder.down.0.downsample.conv.bias", "encoder.down_blocks.0.downsamplers.0.conv.bias"},
      {"decoder.up.3.block.2.norm1.weight", "decoder.up_blocks.0.resnets.2.norm1.weight"},
      {"decoder.up.1.upsample.conv.weight", "decoder.up_blocks.2.upsamplers.0.conv.weight"},
      {"decoder.mid.block_2.conv2.weight", "decoder.mid_block.resnets.1.conv2.weight"},
      {"encoder.mid.attn_1.proj_out.weight", "encoder.mid_block.attentions.0.to_out.0.weight"},
      {"encoder.mid.attn_1.norm.bias", "encoder.mid_block.attentions.0.group_norm.bias"},
      {"decoder.norm_out.weight", "decoder.conv_norm_out.weight"},
      {"encoder.conv_in.weight", "encoder.conv_in.weight"},
      {"post_quant_conv.bias", "post_quant_conv.bias"}};
  for (const auto& [original, expected] : cases) EXPECT_THAT(diffusers_vae_key(original, 4), Optional(std::string(expected)));
  for (const char* odd : {"encoder", "encoder.up.0.block.0.norm1.weight", "encoder.down.4.block.0.norm1.weight", "encoder.mid.attn_2.q.weight",
                          "middle.conv_in.weight", ""})
    EXPECT_EQ(diffusers_vae_key(odd, 4), std::nullopt) << odd;
}

TEST(SingleFileKeys, OpenClipsProjectionsAreViewsOfOneTensor) {
  const at::Tensor in_proj = at::arange(12, at::kFloat).reshape({6, 2});
  const StateDict out = open_clip_of_original({{"m.transformer.resblocks.0.attn.in_proj_weight", in_proj},
                                               {"m.transformer.resblocks.1.attn.in_proj_weight", in_proj},
                                               {"m.text_projection", at::arange(6, at::kFloat).reshape({2, 3})},
                                               {"m.logit_scale", at::zeros({})},
                                               {"m.odd", at::zeros({1})},
                                               {"n.ln_final.weight", at::zeros({2})}},
                                              "m.", /*num_hidden_layers=*/1, /*with_projection=*/true);
  ASSERT_EQ(out.size(), 5u);
  const at::Tensor v = out.at("text_model.encoder.layers.0.self_attn.v_proj.weight");
  EXPECT_EQ(v.const_data_ptr<float>(), in_proj.const_data_ptr<float>() + 8);
  EXPECT_EQ(out.at("text_projection.weight").sizes(), at::IntArrayRef({3, 2}));
  EXPECT_EQ(out.count("m.odd"), 1u) << "what has no place is left for load_state_dict() to name";
}

class SingleFile : public ::testing::Test {
 protected:
  SafetensorsFile file_with(const std::vector<std::string>& keys, StateDict more = {}) {
    for (const std::string& key : keys) more[key] = at::zeros({1});
    write_safetensors(folder_ / "a.safetensors", more);
    return SafetensorsFile(folder_ / "a.safetensors");
  }
  TempDir folder_;
};

TEST_F(SingleFile, TheFamilyIsKnownByItsTextEncoders) {
  const std::string unet = "model.diffusion_model.out.2.bias";
  const auto family = [&](const std::vector<std::string>& keys) { return single_file_family(file_with(keys)); };
  EXPECT_EQ(family({unet, "cond_stage_model.transformer.text_model.final_layer_norm.bias"}), SingleFileFamily::sd1);
  EXPECT_EQ(family({unet, "cond_stage_model.model.ln_final.bias"}), SingleFileFamily::sd2);
  EXPECT_EQ(family({unet, "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
                    "conditioner.embedders.1.model.ln_final.bias"}),
            SingleFileFamily::sdxl);
  EXPECT_EQ(family({unet}), std::nullopt);
  EXPECT_EQ(family({"cond_stage_model.model.ln_final.bias"}), std::nullopt);
  EXPECT_EQ(family({"unet.down_blocks.0.attentions.0.to_q.lora.up.weight"}), std::nullopt);
}

TEST_F(SingleFile, Sd2PredictsVelocityUnlessItIs2Base) {
  const auto prediction_type = [&](const StateDict& more) {
    return single_file_configs(file_with({}, more), SingleFileFamily::sd2).scheduler.prediction_type;
  };
  EXPECT_EQ(prediction_type({{"global_step", at::full({}, 875000, at::kLong)}}), "epsilon");
  EXPECT_EQ(prediction_type({{"global_step", at::full({}, 140000, at::kLong)}}), "v_prediction");
  EXPECT_EQ(prediction_type({{"other", at::zeros({1})}}), "v_prediction");
}

TEST_F(SingleFile, PlaygroundsFileSaysHowLatentsAreMadeStandard) {
  const StateDict numbers = {{"edm_mean", at::tensor({-1.5, 2.0, -1.25, 2.5}, at::kFloat)}, {"edm_std", at::tensor({8.5, 6.0, 6.5, 5.25}, at::kFloat)}};
  const BaseConfigs configs = single_file_configs(file_with({}, numbers), SingleFileFamily::sdxl);
  ASSERT_TRUE(configs.scheduler.edm.has_value());
  EXPECT_EQ(configs.scheduler.edm->sigma_max, 80);
  EXPECT_EQ(configs.vae.scaling_factor, 0.5);
  EXPECT_THAT(configs.vae.latents_mean, testing::ElementsAre(-1.5, 2.0, -1.25, 2.5));
  EXPECT_THAT(configs.vae.latents_std, testing::ElementsAre(8.5, 6.0, 6.5, 5.25));
  EXPECT_FALSE(single_file_configs(file_with({}), SingleFileFamily::sdxl).scheduler.edm.has_value());
}

TEST_F(SingleFile, TheRefinerIsRefused) {
  file_with({"model.diffusion_model.out.2.bias", "conditioner.embedders.0.model.text_projection"});
  try {
    load_stable_diffusion(folder_ / "a.safetensors");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.message(), HasSubstr("refiner"));
  }
}

}  // namespace
}  // namespace lorashard
