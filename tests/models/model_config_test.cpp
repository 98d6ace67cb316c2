#include "models/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

class ModelConfig : public ::testing::Test {
 protected:
  const std::filesystem::path& write(const std::string& text) {
    std::ofstream(path_) << text;
    return path_;
  }
  /// What `read` says about `text`, which it must refuse as bad data.
  template <class Read>
  std::string fault(Read read, const std::string& text) {
    try {
      read(write(text));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.message();
      EXPECT_THAT(error.message(), HasSubstr("config.json"));
      return error.message();
    }
    ADD_FAILURE() << "accepted: " << text;
    return "";
  }

  TempDir folder_;
  std::filesystem::path path_ = folder_ / "config.json";
};

TEST_F(ModelConfig, AbsentUnetKeysHaveDiffusersDefaults) {
  const UNet2DConditionConfig config = read_unet_config(write("{}"));
  EXPECT_EQ(config.cross_attention_dim, 1280);
  EXPECT_THAT(config.block_out_channels, ElementsAre(320, 640, 1280, 1280));
  EXPECT_THAT(config.attention_head_dim, ElementsAre(8, 8, 8, 8));
  EXPECT_THAT(config.transformer_layers_per_block, ElementsAre(1, 1, 1, 1));
  EXPECT_EQ(config.layers_per_block, 2);
  EXPECT_EQ(config.norm_num_groups, 32);
  EXPECT_FALSE(config.use_linear_projection);
  EXPECT_TRUE(config.flip_sin_to_cos);
}

TEST_F(ModelConfig, AbsentVaeKeysHaveDiffusersDefaults) {
  const AutoencoderKLConfig config = read_vae_config(write("{}"));
  EXPECT_THAT(config.block_out_channels, ElementsAre(64));
  EXPECT_EQ(config.layers_per_block, 1);
  EXPECT_EQ(config.scaling_factor, 0.18215);
  EXPECT_TRUE(config.force_upcast);
}

TEST_F(ModelConfig, AbsentTextEncoderKeysHaveTransformersDefaults) {
  const CLIPTextConfig config = read_text_encoder_config(write("{}"));
  EXPECT_EQ(config.vocab_size, 49408);
  EXPECT_EQ(config.hidden_size, 512);
  EXPECT_EQ(config.intermediate_size, 2048);
  EXPECT_EQ(config.num_attention_heads, 8);
  EXPECT_EQ(config.hidden_act, "quick_gelu");
  EXPECT_EQ(config.eos_token_id, 49407);
  EXPECT_FALSE(config.with_projection);
}

TEST_F(ModelConfig, AbsentSchedulerKeysHaveDiffusersDefaults) {
  const DDPMSchedulerConfig config = read_scheduler_config(write("{}"));
  EXPECT_EQ(config.beta_start, 0.0001);
  EXPECT_EQ(config.beta_end, 0.02);
  EXPECT_EQ(config.beta_schedule, "linear");
  EXPECT_EQ(config.prediction_type, "epsilon");
  EXPECT_FALSE(config.rescale_betas_zero_snr);
}

TEST_F(ModelConfig, ReadsStableDiffusion21) {
  const UNet2DConditionConfig config =
      read_unet_config(write(R"({"_class_name": "UNet2DConditionModel", "act_fn": "silu",
    "attention_head_dim": [5, 10, 20, 20], "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": false,
    "cross_attention_dim": 1024, "downsample_padding": 1, "dual_cross_attention": false, "freq_shift": 0,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "num_class_embeds": null, "only_cross_attention": false,
    "sample_size": 96, "upcast_attention": true, "use_linear_projection": true})"));
  EXPECT_THAT(config.attention_head_dim, ElementsAre(5, 10, 20, 20));
  EXPECT_EQ(config.cross_attention_dim, 1024);
  EXPECT_EQ(config.sample_size, 96);
  EXPECT_TRUE(config.use_linear_projection);
  EXPECT_TRUE(config.upcast_attention);
}

TEST_F(ModelConfig, TakesOneIntegerOrAListOfThem) {
  const UNet2DConditionConfig config =
      read_unet_config(write(R"({"attention_head_dim": 4, "transformer_layers_per_block": [1, 2, 3, 4],
    "cross_attention_dim": [64, 64, 64, 64], "layers_per_block": [1, 1, 1, 1], "only_cross_attention": [false, false, false, false]})"));
  EXPECT_THAT(config.attention_head_dim, ElementsAre(4, 4, 4, 4));
  EXPECT_THAT(config.transformer_layers_per_block, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(config.cross_attention_dim, 64);
  EXPECT_EQ(config.layers_per_block, 1);
  EXPECT_THAT(fault(read_unet_config, R"({"attention_head_dim": [8, 8]})"),
              HasSubstr("'attention_head_dim' has 2 entries, expected 4"));
  EXPECT_THAT(fault(read_unet_config, R"({"cross_attention_dim": [64, 32, 64, 64]})"),
              HasSubstr("cross_attention_dim"));
}

TEST_F(ModelConfig, RefusesUnetsItCannotBuildNamingKeyAndValue) {
  const char* cases[][2] = {
      {"act_fn", R"("gelu")"},
      {"mid_block_type", R"("UNetMidBlock2D")"},
      {"mid_block_type", "null"},
      {"class_embed_type", R"("timestep")"},
      {"resnet_time_scale_shift", R"("scale_shift")"},
      {"only_cross_attention", "true"},
      {"only_cross_attention", "[true, false, false, false]"},
      {"dual_cross_attention", "true"},
      {"num_class_embeds", "1000"},
      {"encoder_hid_dim", "4096"},
      {"encoder_hid_dim_type", R"("text_proj")"},
      {"conv_in_kernel", "1"},
      {"conv_out_kernel", "5"},
      {"down_block_types", R"(["AttnDownBlock2D"])"},
      {"up_block_types", R"(["SkipUpBlock2D"])"},
      {"time_embedding_type", R"("fourier")"},
      {"addition_embed_type", R"("image")"},
      {"dropout", "0.1"},
      {"norm_num_groups", "7"},
      {"attention_head_dim", "7"},
      {"layers_per_block", R"("2")"},
      {"layers_per_block", "0"},
      {"cross_attention_dim", "-1"},
      {"block_out_channels", "[]"},
      {"block_out_channels", "[18446744073709551615, 1, 1, 1]"},
      {"use_linear_projection", "1"},
  };
  for (const auto& [key, value] : cases) {
    const std::string text = std::string("{\"") + key + "\": " + value + "}";
    EXPECT_THAT(fault(read_unet_config, text), HasSubstr(key)) << text;
  }
  EXPECT_THAT(fault(read_unet_config, R"({"act_fn": "gelu"})"),
              AllOf(HasSubstr("'act_fn' is \"gelu\""), HasSubstr("\"silu\"")));
}

TEST_F(ModelConfig, RefusesVaesItCannotBuild) {
  for (const char* text :
       {R"({"use_quant_conv": false})", R"({"use_post_quant_conv": false})", R"({"shift_factor": 0.1159})",
        R"({"latents_mean": [0.0]})", R"({"mid_block_add_attention": false})", R"({"act_fn": "relu"})",
        R"({"down_block_types": ["AttnDownEncoderBlock2D"]})", R"({"block_out_channels": [64, 64]})",
        R"({"scaling_factor": 0})"}) {
    EXPECT_NE(fault(read_vae_config, text), "") << text;
  }
}

TEST_F(ModelConfig, ReadsTheTextConfigThatAClipConfigNests) {
  const CLIPTextConfig config = read_text_encoder_config(write(R"({"model_type": "clip", "hidden_size": 9,
    "text_config": {"hidden_size": 768, "num_attention_heads": 12, "eos_token_id": 2}})"));
  EXPECT_EQ(config.hidden_size, 768);
  EXPECT_EQ(config.eos_token_id, 2);
  EXPECT_TRUE(read_text_encoder_config(write(R"({"architectures": ["CLIPTextModelWithProjection"]})")).with_projection);
  EXPECT_THAT(fault(read_text_encoder_config, R"({"hidden_act": "relu"})"), HasSubstr("hidden_act"));
  EXPECT_THAT(fault(read_text_encoder_config, R"({"model_type": "t5"})"), HasSubstr("model_type"));
  EXPECT_THAT(fault(read_text_encoder_config, R"({"num_attention_heads": 7})"), HasSubstr("num_attention_heads"));
}

TEST_F(ModelConfig, ReadsTheScheduleOfAnyDiscreteScheduler) {
  for (const char* name :
       {"PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDPMScheduler"}) {
    const auto config =
        read_scheduler_config(write(std::string(R"({"_class_name": ")") + name + R"(", "beta_schedule": "scaled_linear",
      "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction", "skip_prk_steps": true, "trained_betas": null})"));
    EXPECT_EQ(config.prediction_type, "v_prediction");
    EXPECT_EQ(config.beta_start, 0.00085);
  }
  EXPECT_THAT(fault(read_scheduler_config, R"({"trained_betas": [0.1, 0.2]})"), HasSubstr("trained_betas"));
  EXPECT_THAT(fault(read_scheduler_config, R"({"_class_name": "FlowMatchEulerDiscreteScheduler"})"),
              HasSubstr("FlowMatch"));
  EXPECT_THAT(fault(read_scheduler_config, R"({"prediction_type": "flow_prediction"})"), HasSubstr("prediction_type"));
  EXPECT_THAT(fault(read_scheduler_config, R"({"beta_start": 0.5, "beta_end": 0.1})"), HasSubstr("beta_start"));
}

TEST_F(ModelConfig, WhatIsWrittenReadsBackTheSame) {
  UNet2DConditionConfig unet;
  unet.attention_head_dim = {5, 10, 20, 20};
  unet.use_linear_projection = true;
  const auto unet_again = read_unet_config(write(to_json(unet)));
  EXPECT_EQ(to_json(unet_again), to_json(unet));
  EXPECT_EQ(unet_again.attention_head_dim, unet.attention_head_dim);
  AutoencoderKLConfig vae;
  vae.scaling_factor = 0.13025;
  EXPECT_EQ(to_json(read_vae_config(write(to_json(vae)))), to_json(vae));
  CLIPTextConfig text;
  text.hidden_act = "gelu";
  EXPECT_EQ(to_json(read_text_encoder_config(write(to_json(text)))), to_json(text));
  DDPMSchedulerConfig scheduler;
  scheduler.prediction_type = "v_prediction";
  EXPECT_EQ(to_json(read_scheduler_config(write(to_json(scheduler)))), to_json(scheduler));
  scheduler.rescale_betas_zero_snr = true;
  EXPECT_TRUE(read_scheduler_config(write(to_json(scheduler))).rescale_betas_zero_snr);
}

TEST_F(ModelConfig, RefusesWhatIsNoJsonObject) {
  for (const char* text : {"", "{", "[]", "3", "{\"a\":1}x", "\xff"})
    EXPECT_NE(fault(read_unet_config, text), "") << text;
  try {
    read_unet_config(folder_ / "none.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

}  // namespace
}  // namespace lorashard
