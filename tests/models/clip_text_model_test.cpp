#include "models/clip_text_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr int64_t kEos = 99;

CLIPTextConfig small_config() {
  CLIPTextConfig config;
  config.vocab_size = 100;
  config.hidden_size = 16;
  config.intermediate_size = 32;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 2;
  config.max_position_embeddings = 12;
  config.eos_token_id = kEos;
  return config;
}

void randomise(torch::nn::Module& module) {
  at::manual_seed(4);
  for (const auto& parameter : module.named_parameters()) parameter.value().set_data(at::randn_like(parameter.value()));
}

TEST(CLIPTextModel, ALaterTokenChangesNothingBeforeIt) {
  CLIPTextModel model(small_config());
  randomise(model);
  const at::Tensor ids = at::arange(1, 13).view({1, 12});
  at::Tensor other = ids.clone();
  other[0][7] = 50;
  const at::Tensor a = model.forward(ids).last_hidden_state, b = model.forward(other).last_hidden_state;
  EXPECT_TRUE(at::allclose(a.slice(1, 0, 7), b.slice(1, 0, 7), 1e-6, 1e-6));
  EXPECT_GT((a - b).slice(1, 7).abs().amin(-1).amax().item<float>(), 0);
  EXPECT_GT((a - b).slice(1, 11).abs().max().item<float>(), 1e-3);
}

TEST(CLIPTextModel, PoolsTheFirstEndOfTextOrTheHighestId) {
  const at::Tensor ids = at::tensor({1L, 5L, kEos, 7L, kEos, 0L, 1L, 97L, 6L, kEos, 0L, 0L}).view({2, 6});
  CLIPTextModel model(small_config());
  randomise(model);
  CLIPTextOutput out = model.forward(ids);
  EXPECT_TRUE(out.pooled[0].equal(out.last_hidden_state[0][2]));
  EXPECT_TRUE(out.pooled[1].equal(out.last_hidden_state[1][3]));

  CLIPTextConfig legacy = small_config();
  legacy.eos_token_id = 2;
  CLIPTextModel legacy_model(legacy);
  randomise(legacy_model);
  out = legacy_model.forward(at::tensor({1, 5, 2, 98, 4, 0}, at::kLong).view({1, 6}));
  EXPECT_TRUE(out.pooled[0].equal(out.last_hidden_state[0][3]));
}

TEST(CLIPTextModel, ProjectionGivesProjectionDim) {
  CLIPTextConfig config = small_config();
  config.with_projection = true;
  config.projection_dim = 10;
  CLIPTextModel model(config);
  randomise(model);
  const CLIPTextOutput out = model.forward(at::full({3, 12}, kEos, at::kLong));
  EXPECT_EQ(out.pooled.sizes(), at::IntArrayRef({3, 10}));
  EXPECT_EQ(out.penultimate_hidden_state.sizes(), at::IntArrayRef({3, 12, 16}));
}

TEST(CLIPTextModel, ParameterNamesAreTransformersOlderKeys) {
  CLIPTextConfig config = small_config();
  config.num_hidden_layers = 1;
  const CLIPTextModel model(config);
  std::vector<std::string> names;
  for (const auto& parameter : model.named_parameters()) names.push_back(parameter.key());
  const std::string layer = "text_model.encoder.layers.0.";
  std::vector<std::string> expected = {"text_model.embeddings.token_embedding.weight",
                                       "text_model.embeddings.position_embedding.weight"};
  for (const char* part : {"self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj",
                           "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2"}) {
    expected.push_back(layer + part + ".weight");
    expected.push_back(layer + part + ".bias");
  }
  expected.push_back("text_model.final_layer_norm.weight");
  expected.push_back("text_model.final_layer_norm.bias");
  EXPECT_THAT(names, testing::UnorderedElementsAreArray(expected));
}

TEST(CLIPTextModel, KeysOfEitherSpellingBecomeTheSame) {
  const at::Tensor t = at::zeros({1});
  const StateDict without = normalise_text_encoder_keys({{"final_layer_norm.bias", t}, {"text_projection.weight", t}});
  const StateDict with = normalise_text_encoder_keys({{"text_model.final_layer_norm.bias", t},
                                                      {"text_model.embeddings.position_ids", t},
                                                      {"text_projection.weight", t}});
  ASSERT_EQ(without.size(), 2u);
  EXPECT_TRUE(without.contains("text_model.final_layer_norm.bias"));
  EXPECT_TRUE(without.contains("text_projection.weight"));
  for (const auto& [key, tensor] : with) EXPECT_TRUE(without.contains(key)) << key;
  EXPECT_EQ(with.size(), without.size());
}

TEST(CLIPTextModel, WhatItCannotBuildIsBadData) {
  CLIPTextConfig activation = small_config(), heads = small_config();
  activation.hidden_act = "relu";
  heads.num_attention_heads = 3;
  for (const CLIPTextConfig& config : {activation, heads}) {
    try {
      CLIPTextModel{config};
      FAIL() << "built";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    }
  }
  EXPECT_THROW(CLIPTextModel(small_config()).forward(at::zeros({1, 13}, at::kLong)), Error);
}

}  // namespace
}  // namespace lorashard
