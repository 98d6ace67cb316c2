#include "models/state_dict.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dist/error.h"
#include "models/layers.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// Two layers, under the names a diffusers module would have.
struct Model : torch::nn::Module {
  Model() {
    proj_in = register_module("proj_in", std::make_shared<Linear>(3, 2));
    norm = register_module("norm", std::make_shared<LayerNorm>(2));
  }
  std::shared_ptr<Linear> proj_in;
  std::shared_ptr<LayerNorm> norm;
};

StateDict good_state() {
  return {{"proj_in.weight", at::arange(6, at::kFloat).reshape({2, 3})},
          {"proj_in.bias", at::ones({2})},
          {"norm.weight", at::ones({2})},
          {"norm.bias", at::zeros({2})}};
}

Error error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "expected an Error";
  return Error(ErrorKind::internal, "");
}

void write_text(const std::filesystem::path& path, const std::string& text) { std::ofstream(path) << text; }

TEST(LoadStateDict, PointsTheLayersAtTheTensorsWithoutACopy) {
  Model model;
  const StateDict state = good_state();
  load_state_dict(model, state, "unet");
  EXPECT_EQ(model.proj_in->weight.const_data_ptr(), state.at("proj_in.weight").const_data_ptr());
  EXPECT_EQ(model.named_parameters()["proj_in.weight"].const_data_ptr(), state.at("proj_in.weight").const_data_ptr());
  EXPECT_TRUE(at::equal(model.proj_in->forward(at::ones({1, 3})), at::tensor({4.0f, 13.0f}).reshape({1, 2})));
  EXPECT_FALSE(model.proj_in->weight.requires_grad());
}

TEST(LoadStateDict, ConvertsToTheTypeAskedFor) {
  Model model;
  StateDict state = good_state();
  state["proj_in.weight"] = state["proj_in.weight"].to(at::kHalf);
  load_state_dict(model, state, "unet", at::kFloat);
  EXPECT_EQ(model.proj_in->weight.scalar_type(), at::kFloat);
  load_state_dict(model, state, "unet", at::kBFloat16);
  EXPECT_EQ(model.proj_in->weight.scalar_type(), at::kBFloat16);
  EXPECT_EQ(model.norm->bias.scalar_type(), at::kBFloat16);
}

TEST(LoadStateDict, ListsEveryFaultInOneError) {
  Model model;
  StateDict state = good_state();
  state.erase("norm.weight");
  state["other"] = at::ones({1});
  state["proj_in.weight"] = at::ones({3, 2});
  state["norm.bias"] = at::ones({2}, at::kChar);
  const Error error = error_of([&] { load_state_dict(model, state, "base/unet"); });
  EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  EXPECT_THAT(error.message(), AllOf(HasSubstr("'base/unet'"), HasSubstr("1 missing key: 'norm.weight'"),
                                     HasSubstr("1 unexpected key: 'other'"), HasSubstr("2 misshapen keys"),
                                     HasSubstr("'proj_in.weight' (expected [2, 3], found [3, 2])"),
                                     HasSubstr("'norm.bias' (expected floating point, found Char)")));
}

TEST(LoadStateDict, ChangesNothingWhenItFails) {
  Model model;
  load_state_dict(model, good_state(), "unet");
  const void* before = model.proj_in->bias.const_data_ptr();
  StateDict state = good_state();
  state.erase("norm.weight");
  EXPECT_THROW(load_state_dict(model, state, "unet"), Error);
  EXPECT_EQ(model.proj_in->bias.const_data_ptr(), before);
}

TEST(LoadStateDict, ListsTenKeysAndCountsTheRest) {
  Model model;
  StateDict state = good_state();
  for (int i = 10; i < 25; ++i) state["extra" + std::to_string(i)] = at::ones({1});
  const Error error = error_of([&] { load_state_dict(model, state, "unet"); });
  EXPECT_THAT(error.message(),
              AllOf(HasSubstr("15 unexpected keys"), HasSubstr("'extra19' and 5 more"), Not(HasSubstr("extra20"))));
}

TEST(LoadStateDict, ExtraKeysMayBeIgnoredBySuffix) {
  Model model;
  StateDict state = good_state();
  state["embeddings.position_ids"] = at::arange(3);
  EXPECT_THROW(load_state_dict(model, state, "te"), Error);
  load_state_dict(model, state, "te", at::kFloat, {"position_ids"});
}

TEST(ReadComponentWeights, ReadsThePlainFileAndItsVariant) {
  TempDir folder;
  write_safetensors(folder / "model.safetensors", {{"a", at::ones({1})}});
  write_safetensors(folder / "model.fp16.safetensors", {{"a", at::ones({1}, at::kHalf)}});
  EXPECT_EQ(read_component_weights(folder.path(), "model").at("a").scalar_type(), at::kFloat);
  EXPECT_EQ(read_component_weights(folder.path(), "model", "fp16").at("a").scalar_type(), at::kHalf);
}

TEST(ReadComponentWeights, ReadsShardsInEverySpellingOfTheIndex) {
  for (const char* index :
       {"model.safetensors.index.json", "model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"}) {
    TempDir folder;
    write_safetensors(folder / "s1.safetensors", {{"a", at::ones({1})}, {"c", at::ones({3})}});
    write_safetensors(folder / "s2.safetensors", {{"b", at::ones({2})}});
    write_text(folder / index,
               R"({"metadata":{},"weight_map":{"a":"s1.safetensors","b":"s2.safetensors","c":"s1.safetensors"}})");
    const std::string variant = std::string(index).find("fp16") == std::string::npos ? "" : "fp16";
    EXPECT_EQ(read_component_weights(folder.path(), "model", variant).size(), 3u) << index;
    EXPECT_EQ(component_weight_files(folder.path(), "model", variant).size(), 3u) << index;
  }
}

TEST(ReadComponentWeights, RefusesAnIndexThatLeavesItsFolder) {
  TempDir folder;
  std::filesystem::create_directory(folder / "unet");
  write_safetensors(folder / "secret.safetensors", {{"a", at::ones({1})}});
  const std::string absolute = (folder / "secret.safetensors").string();
  for (const std::string& name :
       std::vector<std::string>{"../secret.safetensors", absolute, "..", "", "x\\\\y", "a\\u0000b"}) {
    write_text(folder / "unet/model.safetensors.index.json", R"({"weight_map":{"a":")" + name + R"("}})");
    const Error error = error_of([&] { read_component_weights(folder / "unet", "model"); });
    EXPECT_EQ(error.kind(), ErrorKind::bad_data) << name;
    EXPECT_THAT(error.message(), HasSubstr("not a plain file name"));
  }
}

TEST(ReadComponentWeights, RefusesAnIndexThatItsShardsContradict) {
  TempDir folder;
  write_safetensors(folder / "s1.safetensors", {{"a", at::ones({1})}});
  const auto fault = [&](const std::string& index) {
    write_text(folder / "model.safetensors.index.json", index);
    const Error error = error_of([&] { read_component_weights(folder.path(), "model"); });
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    return error.message();
  };
  EXPECT_THAT(fault(R"({"weight_map":{"a":"s1.safetensors","b":"s1.safetensors"}})"), HasSubstr("lacks 'b'"));
  EXPECT_THAT(fault(R"({"weight_map":{"b":"s1.safetensors"}})"), HasSubstr("holds 'a'"));
  EXPECT_THAT(fault(R"({"weight_map":{"a":"s2.safetensors"}})"), HasSubstr("'s2.safetensors' is missing"));
  EXPECT_THAT(fault(R"({"weight_map":{"a":1}})"), HasSubstr("not an index"));
  EXPECT_THAT(fault("{"), HasSubstr("not an index"));
}

TEST(ReadComponentWeights, SaysWhatItLookedForAndWhatIsThere) {
  TempDir folder;
  const auto error = [&](const char* variant) {
    return error_of([&] { read_component_weights(folder.path(), "diffusion_pytorch_model", variant); });
  };
  EXPECT_EQ(error("").kind(), ErrorKind::usage);
  EXPECT_THAT(
      error("").message(),
      HasSubstr("neither 'diffusion_pytorch_model.safetensors' nor 'diffusion_pytorch_model.safetensors.index.json'"));
  write_text(folder / "diffusion_pytorch_model.bin", "pickle");
  EXPECT_THAT(error("").hint(), HasSubstr("pickled"));
  write_safetensors(folder / "diffusion_pytorch_model.fp16.safetensors", {{"a", at::ones({1})}});
  EXPECT_THAT(error("").hint(), HasSubstr("variant = \"fp16\""));
  write_safetensors(folder / "diffusion_pytorch_model.safetensors", {{"a", at::ones({1})}});
  EXPECT_THAT(error("bf16").hint(), HasSubstr("leave 'variant = \"bf16\"' out"));
}

}  // namespace
}  // namespace lorashard
