#include "models/lora_state_dict.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

/// "attn.to_q", "attn.to_out.0" and "ff": [5 -> 6] each.
struct Toy : torch::nn::Module {
  Toy() {
    auto attention = register_module("attn", std::make_shared<torch::nn::Module>());
    attention->register_module("to_q", std::make_shared<Linear>(5, 6));
    auto to_out = attention->register_module("to_out", std::make_shared<ModuleList<Linear>>());
    to_out->append(std::make_shared<Linear>(5, 6));
    register_module("ff", std::make_shared<Linear>(5, 6));
  }
};

struct Adapted {
  Toy unet, text_encoder;
  LoraAdapter adapter;
  Adapted(std::vector<std::string> targets, double alpha, bool with_text_encoder = false) {
    adapter.add("unet", unet, {.rank = 2, .alpha = alpha, .target_modules = std::move(targets)});
    if (with_text_encoder)
      adapter.add("text_encoder", text_encoder, {.rank = 2, .alpha = alpha, .target_modules = {"to_q", "ff"}});
    adapter.allocate(5);
    adapter.flat_parameters().normal_();
  }
};

std::vector<std::string> downs(const LoraAdapter& adapter) {
  std::vector<std::string> result;
  for (const LoraKeys& keys : diffusers_keys(adapter.modules())) result.push_back(keys.down);
  return result;
}

TEST(LoraStateDict, AttentionProjectionsAloneAreNamedDownAndUp) {
  EXPECT_THAT(downs(Adapted({"to_q", "to_out.0"}, 2).adapter),
              testing::ElementsAre("unet.attn.to_q.lora.down.weight", "unet.attn.to_out.0.lora.down.weight"));
}

TEST(LoraStateDict, OneOtherTargetMakesTheWholeUNetUsePeftNames) {
  EXPECT_THAT(downs(Adapted({"to_q", "ff"}, 2).adapter),
              testing::ElementsAre("unet.attn.to_q.lora_A.weight", "unet.ff.lora_A.weight"));
}

TEST(LoraStateDict, TextEncodersKeepTheirOwnNamesWhateverTheUNetHas) {
  EXPECT_THAT(
      downs(Adapted({"to_q"}, 2, true).adapter),
      testing::ElementsAre("unet.attn.to_q.lora.down.weight", "text_encoder.attn.to_q.lora_linear_layer.down.weight",
                           "text_encoder.ff.lora_linear_layer.down.weight"));
}

TEST(LoraStateDict, TheExportFoldsAlphaOverRankIntoUp) {
  const Adapted model({"to_q"}, 7);
  const LoraPair& pair = *model.adapter.modules()[0].layer->lora;
  const StateDict state = to_diffusers(model.adapter);
  EXPECT_TRUE(at::equal(state.at("unet.attn.to_q.lora.down.weight"), pair.down));
  EXPECT_TRUE(at::equal(state.at("unet.attn.to_q.lora.up.weight"), pair.up.detach() * 3.5));
}

TEST(LoraStateDict, TheExportIsACopy) {
  Adapted model({"to_q"}, 2);
  const StateDict state = to_diffusers(model.adapter);
  const at::Tensor before = state.at("unet.attn.to_q.lora.up.weight").clone();
  model.adapter.flat_parameters().zero_();
  EXPECT_TRUE(at::equal(state.at("unet.attn.to_q.lora.up.weight"), before));
}

TEST(LoraStateDict, LoadingAnExportGivesTheParametersBack) {
  for (const double alpha : {2.0, 7.0, 0.3}) {
    Adapted from({"to_q", "ff"}, alpha), to({"to_q", "ff"}, alpha);
    load_diffusers(to.adapter, to_diffusers(from.adapter), "test");
    // alpha / rank = 1 is exact; else one product and one quotient.
    EXPECT_TRUE(at::allclose(to.adapter.flat_parameters(), from.adapter.flat_parameters(), 2e-7, 0));
    if (alpha == 2.0) {
      EXPECT_TRUE(at::equal(to.adapter.flat_parameters(), from.adapter.flat_parameters()));
    }
  }
}

TEST(LoraStateDict, LoadingNamesEveryMissingUnexpectedAndMisshapenKey) {
  Adapted model({"to_q", "to_out.0"}, 2);
  StateDict state = to_diffusers(model.adapter);
  state.erase("unet.attn.to_q.lora.up.weight");
  state["unet.attn.to_q.alpha"] = at::ones({});
  state["unet.attn.to_out.0.lora.down.weight"] = at::zeros({3, 5});
  const at::Tensor before = model.adapter.flat_parameters().clone();
  try {
    load_diffusers(model.adapter, state, "adapter.safetensors");
    FAIL() << "loaded";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.what(), HasSubstr("'adapter.safetensors'"));
    EXPECT_THAT(error.what(), HasSubstr("missing keys (1): unet.attn.to_q.lora.up.weight"));
    EXPECT_THAT(error.what(), HasSubstr("unexpected keys (1): unet.attn.to_q.alpha"));
    EXPECT_THAT(error.what(), HasSubstr("unet.attn.to_out.0.lora.down.weight: expected [2, 5], found [3, 5]"));
  }
  EXPECT_TRUE(at::equal(before, model.adapter.flat_parameters())) << "a refused file must leave the adapter as it was";
}

}  // namespace
}  // namespace lorashard
