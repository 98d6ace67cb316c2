#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"
#include "models/embeddings.h"
#include "models/unet_2d_condition.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

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

std::string refusal(const UNet2DConditionConfig& config, ErrorKind kind) {
  try {
    UNet2DConditionModel unet(config);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), kind);
    return error.what();
  }
  ADD_FAILURE() << "was built";
  return "";
}

TEST(UNet2DConditionModel, HasTheParameterCountOfStableDiffusion15) {
  const UNet2DConditionModel unet{UNet2DConditionConfig{}};
  int64_t count = 0;
  for (const at::Tensor& parameter : unet.parameters()) count += parameter.numel();
  EXPECT_EQ(count, 859520964);  // runwayml/stable-diffusion-v1-5's unet
}

TEST(UNet2DConditionModel, ItsFrozenParametersWantNoGradient) {
  const UNet2DConditionModel unet(small_config());
  for (const at::Tensor& parameter : unet.parameters()) EXPECT_FALSE(parameter.requires_grad());
}

TEST(UNet2DConditionModel, ImagesOfABatchDoNotSeeEachOther) {
  UNet2DConditionModel unet(small_config());
  at::manual_seed(4);
  for (at::Tensor& parameter : unet.parameters()) parameter.normal_(0, parameter.dim() > 1 ? 0.05 : 1.0);
  const at::Tensor sample = at::randn({3, 4, 8, 4}), text = at::randn({3, 5, 24});
  const at::Tensor timesteps = at::tensor({0, 500, 999}, at::kLong);
  const at::Tensor together = unet.forward(sample, timesteps, text);
  EXPECT_EQ(together.sizes(), sample.sizes());
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor alone = unet.forward(sample.narrow(0, i, 1), timesteps.narrow(0, i, 1), text.narrow(0, i, 1));
    EXPECT_LE((alone - together.narrow(0, i, 1)).norm().item<double>(), 1e-5 * alone.norm().item<double>());
  }
}

TEST(UNet2DConditionModel, LatentsOfAnOddSizeAreRefused) {
  const UNet2DConditionModel unet(small_config());
  EXPECT_THROW(unet.forward(at::zeros({1, 4, 8, 7}), at::zeros({1}, at::kLong), at::zeros({1, 5, 24})), Error);
}

TEST(UNet2DConditionModel, AnUnknownBlockTypeIsNamed) {
  UNet2DConditionConfig config = small_config();
  config.down_block_types[1] = "AttnDownBlock2D";
  EXPECT_THAT(refusal(config, ErrorKind::bad_data), HasSubstr("'AttnDownBlock2D'"));
}

TEST(UNet2DConditionModel, HeadsThatDoNotDivideTheChannelsAreRefused) {
  UNet2DConditionConfig config = small_config();
  config.attention_head_dim[1] = 5;
  EXPECT_THAT(refusal(config, ErrorKind::bad_data), HasSubstr("block_out_channels[1] = 32"));
}

TEST(UNet2DConditionModel, ListsOfDifferentLengthAreRefused) {
  UNet2DConditionConfig config = small_config();
  config.up_block_types.pop_back();
  EXPECT_THAT(refusal(config, ErrorKind::bad_data), HasSubstr("up_block_types (1)"));
}

UNet2DConditionConfig small_sdxl_config() {
  UNet2DConditionConfig config = small_config();
  config.addition_embed_type = "text_time";
  config.addition_time_embed_dim = 4;
  config.projection_class_embeddings_input_dim = 8 + 6 * 4;
  return config;
}

TEST(UNet2DConditionModel, AnotherAddedEmbeddingIsRefused) {
  UNet2DConditionConfig config = small_sdxl_config();
  config.addition_embed_type = "image";
  EXPECT_THAT(refusal(config, ErrorKind::bad_data), HasSubstr("'image'"));
}

TEST(UNet2DConditionModel, TakesAddedConditionsWhereTheConfigHasThemAndOnlyThere) {
  const at::Tensor sample = at::zeros({1, 4, 8, 8}), timesteps = at::zeros({1}, at::kLong), text = at::zeros({1, 5, 24});
  const AddedConditions added{.text_embeds = at::zeros({1, 8}), .time_ids = at::zeros({1, 6})};
  const UNet2DConditionModel plain(small_config()), sdxl(small_sdxl_config());
  EXPECT_NO_THROW(sdxl.forward(sample, timesteps, text, added));
  EXPECT_THROW(sdxl.forward(sample, timesteps, text), Error);
  EXPECT_THROW(plain.forward(sample, timesteps, text, added), Error);
  EXPECT_THROW(sdxl.forward(sample, timesteps, text, {at::zeros({1, 8}), at::zeros({1, 5})}), Error);
}

TEST(UNet2DConditionModel, HasTheParameterCountOfSdxl) {
  UNet2DConditionConfig config;
  config.block_out_channels = {320, 640, 1280};
  config.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"};
  config.up_block_types = {"CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"};
  config.transformer_layers_per_block = {1, 2, 10};
  config.attention_head_dim = {5, 10, 20};
  config.cross_attention_dim = 2048;
  config.use_linear_projection = true;
  config.addition_embed_type = "text_time";
  config.addition_time_embed_dim = 256;
  config.projection_class_embeddings_input_dim = 2816;
  const UNet2DConditionModel unet(config);
  int64_t count = 0;
  for (const at::Tensor& parameter : unet.parameters()) count += parameter.numel();
  EXPECT_EQ(count, 2567463684);  // stabilityai/stable-diffusion-xl-base-1.0's unet
}

TEST(TimestepEmbedding, IsCosinesThenSinesOfFallingFrequencies) {
  const at::Tensor embedding = get_timestep_embedding(at::tensor({999}, at::kLong), 4, true, 0);
  const at::Tensor expected =
      at::tensor({std::cos(999.0), std::cos(9.99), std::sin(999.0), std::sin(9.99)}, at::kFloat);
  EXPECT_LE((embedding[0] - expected).abs().max().item<float>(), 1e-6f);
  EXPECT_TRUE(at::equal(get_timestep_embedding(at::tensor({999}, at::kLong), 4, false, 0),
                        at::cat({embedding.narrow(1, 2, 2), embedding.narrow(1, 0, 2)}, 1)));
}

}  // namespace
}  // namespace lorashard
