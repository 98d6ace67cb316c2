#include "models/autoencoder_kl.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

AutoencoderKLConfig small_config() {
  AutoencoderKLConfig config;
  config.block_out_channels = {8, 16, 16};
  config.layers_per_block = 1;
  config.norm_num_groups = 4;
  return config;
}

void randomise(torch::nn::Module& module) {
  at::manual_seed(6);
  for (const auto& parameter : module.named_parameters())
    parameter.value().set_data(at::randn_like(parameter.value()) * 0.2);
}

TEST(AutoencoderKL, HalvesTheSidesOncePerLevelButTheLast) {
  AutoencoderKL vae(small_config());
  randomise(vae);
  const at::Tensor moments = vae.encode_moments(at::randn({2, 3, 32, 24}));
  EXPECT_EQ(moments.sizes(), at::IntArrayRef({2, 8, 8, 6}));
  EXPECT_EQ(vae.decode(moments.slice(1, 0, 4)).sizes(), at::IntArrayRef({2, 3, 32, 24}));
  EXPECT_FALSE(moments.requires_grad());
}

TEST(AutoencoderKL, PicturesOfABatchDoNotTouchEachOther) {
  AutoencoderKL vae(small_config());
  randomise(vae);
  const at::Tensor pictures = at::randn({3, 3, 32, 32});
  const at::Tensor together = vae.encode_moments(pictures);
  for (int64_t i = 0; i < 3; ++i) {
    const at::Tensor alone = vae.encode_moments(pictures.slice(0, i, i + 1));
    EXPECT_LE((together.slice(0, i, i + 1) - alone).norm().item<float>(), 1e-5 * alone.norm().item<float>());
  }
}

TEST(AutoencoderKL, SampleClampsTheLogVariance) {
  const at::Tensor mean = at::tensor({1.f, 2.f, 3.f}), logvar = at::tensor({-1000.f, 0.f, 1000.f});
  const at::Tensor moments = at::cat({mean, logvar}).view({1, 2, 3, 1});
  const at::Tensor sampled = sample_latents(moments, at::ones({1, 1, 3, 1})).flatten();
  EXPECT_NEAR(sampled[0].item<double>(), 1 + std::exp(-15), 1e-6);
  EXPECT_NEAR(sampled[1].item<double>(), 3, 1e-6);
  EXPECT_NEAR(sampled[2].item<double>(), 3 + std::exp(10.0), 1e-2);
  EXPECT_EQ(moments.flatten()[5].item<float>(), 1000.f) << "the moments were changed";
}

TEST(AutoencoderKL, OldAttentionKeysBecomeTheModulesOwn) {
  const AutoencoderKL vae(small_config());
  StateDict expected, old;
  for (const auto& parameter : vae.named_parameters()) {
    std::string key = parameter.key();
    at::Tensor tensor = parameter.value();
    expected.emplace(key, tensor);
    for (const auto& [now, before] : std::map<std::string, std::string>{
             {"to_q", "query"}, {"to_k", "key"}, {"to_v", "value"}, {"to_out.0", "proj_attn"}}) {
      const size_t at = key.find(".attentions.0." + now + ".");
      if (at == std::string::npos) continue;
      key.replace(at + std::string(".attentions.0.").size(), now.size(), before);
      if (tensor.dim() == 2) tensor = tensor.unsqueeze(2).unsqueeze(3);
    }
    old.emplace(key, tensor);
  }
  EXPECT_TRUE(old.contains("encoder.mid_block.attentions.0.query.weight"));
  EXPECT_TRUE(old.contains("decoder.mid_block.attentions.0.proj_attn.bias"));
  const StateDict found = normalise_vae_keys(old);
  ASSERT_EQ(found.size(), expected.size());
  for (const auto& [key, tensor] : expected) {
    ASSERT_TRUE(found.contains(key)) << key;
    EXPECT_EQ(found.at(key).sizes(), tensor.sizes()) << key;
  }
}

TEST(AutoencoderKL, GroupsThatDoNotDivideTheChannelsAreBadData) {
  AutoencoderKLConfig config = small_config();
  config.norm_num_groups = 3;
  try {
    AutoencoderKL{config};
    FAIL() << "built";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  }
}

}  // namespace
}  // namespace lorashard
