#include "trainer/conditioning.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "dist/error.h"
#include "models/stable_diffusion.h"
#include "tests/support/temp_dir.h"
#include "trainer/diffusion_loss.h"

namespace lorashard {
namespace {

/// Two pictures and captions as the loader would give them for `base`.
Batch batch_for(const StableDiffusion& base) {
  Batch batch;
  batch.sample_ids = {0, 1};
  batch.captions = {"a red cat", "a blue dog"};
  batch.images = {{.original_size = {1001, 700}, .crop_top = 17, .crop_left = 3}, {.original_size = {64, 80}, .crop_left = 16}};
  batch.pixel_values = at::linspace(-1, 1, 2 * 3 * 64 * 64).reshape({2, 3, 64, 64});
  batch.input_ids = (*base.tokenizer)(batch.captions);
  if (base.is_sdxl()) batch.input_ids_2 = (*base.tokenizer_2)(batch.captions);
  batch.vae_noise = at::zeros({2, 4, 8, 8});
  batch.noise = at::ones({2, 4, 8, 8});
  batch.timesteps = at::tensor({5, 900}, at::kLong);
  return batch;
}

class SdxlConditioning : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TempDir();
    init_base("tiny-sdxl", *folder_ / "base", 1, "");
  }
  static void TearDownTestSuite() {
    delete folder_;
    folder_ = nullptr;
  }
  static StableDiffusion load(at::ScalarType dtype) { return load_stable_diffusion(*folder_ / "base", {.dtype = dtype}); }
  static TempDir* folder_;
};
TempDir* SdxlConditioning::folder_ = nullptr;

TEST_F(SdxlConditioning, HasBothEncodersStatesThePooledOutputAndTheTimeIds) {
  const StableDiffusion base = load(at::kFloat);
  const Batch batch = batch_for(base);
  const Conditioning out = encode(base, batch, /*deterministic=*/true);
  EXPECT_EQ(out.encoder_hidden_states.sizes(), at::IntArrayRef({2, 77, 192}));
  EXPECT_EQ(out.pooled_prompt_embeds.sizes(), at::IntArrayRef({2, 96}));
  const CLIPTextOutput first = base.text_encoder->forward(batch.input_ids.narrow(0, 1, 1));
  const CLIPTextOutput second = base.text_encoder_2->forward(batch.input_ids_2.narrow(0, 1, 1));
  EXPECT_TRUE(at::equal(out.encoder_hidden_states[1],
                        at::cat({first.penultimate_hidden_state, second.penultimate_hidden_state}, -1)[0]));
  EXPECT_TRUE(at::equal(out.pooled_prompt_embeds[1], second.pooled[0]));
  EXPECT_TRUE(at::equal(out.add_time_ids, at::tensor({1001, 700, 17, 3, 64, 64, 64, 80, 0, 16, 64, 64}, at::kFloat).reshape({2, 6})));
}

TEST_F(SdxlConditioning, ClipSkipLeavesOutTheLastLayersOfBothEncodersButNotOfThePooledOutput) {
  const StableDiffusion base = load_stable_diffusion(*folder_ / "base", {.clip_skip = 1});
  const Batch batch = batch_for(base);
  const Conditioning out = encode(base, batch, /*deterministic=*/true), usual = encode(load(at::kFloat), batch, true);
  const CLIPTextOutput first = base.text_encoder->forward(batch.input_ids.narrow(0, 1, 1), 1);
  const CLIPTextOutput second = base.text_encoder_2->forward(batch.input_ids_2.narrow(0, 1, 1), 1);
  EXPECT_TRUE(at::equal(out.encoder_hidden_states[1],
                        at::cat({first.penultimate_hidden_state, second.penultimate_hidden_state}, -1)[0]));
  EXPECT_FALSE(at::equal(out.encoder_hidden_states, usual.encoder_hidden_states));
  EXPECT_TRUE(at::equal(out.pooled_prompt_embeds, usual.pooled_prompt_embeds));
}

TEST_F(SdxlConditioning, ClipSkipOfAllLayersIsRefused) {
  // The first text encoder has 4 layers, the second 5.
  EXPECT_NO_THROW(load_stable_diffusion(*folder_ / "base", {.clip_skip = 3}));
  try {
    load_stable_diffusion(*folder_ / "base", {.clip_skip = 4});
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(std::string(error.what()).find("clip_skip is 4, expected 0 to 3"), std::string::npos) << error.what();
  }
}

TEST_F(SdxlConditioning, TheVaeAndTheTimeIdsStayFp32UnderABf16Unet) {
  const StableDiffusion half = load(at::kBFloat16), full = load(at::kFloat);
  const Batch batch = batch_for(half);
  const Conditioning out = encode(half, batch, true);
  EXPECT_TRUE(at::equal(out.latents, encode(full, batch, true).latents));
  EXPECT_EQ(out.encoder_hidden_states.scalar_type(), at::kBFloat16);
  EXPECT_EQ(out.add_time_ids[0][0].item<float>(), 1001.0f) << "bf16 would round it to 1000";
  EXPECT_TRUE(std::isfinite(diffusion_loss(half, out, batch, {}).loss.item<double>()));
}

TEST_F(SdxlConditioning, TheTimeIdsReachTheUnet) {
  const StableDiffusion base = load(at::kFloat);
  Batch batch = batch_for(base);
  const at::Tensor before = diffusion_loss(base, encode(base, batch, true), batch, {}).model_pred;
  batch.images[1].crop_left = 0;
  const at::Tensor after = diffusion_loss(base, encode(base, batch, true), batch, {}).model_pred;
  EXPECT_TRUE(at::equal(before[0], after[0]));
  EXPECT_FALSE(at::equal(before[1], after[1]));
}

TEST(Conditioning, OtherBasesHaveNoAddedConditions) {
  const TempDir folder;
  init_base("tiny-sd15", folder / "base", 1, "");
  const StableDiffusion base = load_stable_diffusion(folder / "base");
  const Conditioning out = encode(base, batch_for(base), true);
  EXPECT_FALSE(base.is_sdxl());
  EXPECT_FALSE(out.pooled_prompt_embeds.defined() || out.add_time_ids.defined());
}

}  // namespace
}  // namespace lorashard
