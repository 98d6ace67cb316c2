#include "models/stable_diffusion.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dist/error.h"
#include "dist/sha256.h"
#include "models/state_dict.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

/// One tiny base for all tests of this file; those that change it take a copy.
class StableDiffusionBase : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    shared_ = new TempDir();
    init_base("tiny-sd15", base(), 1, "");
  }
  static void TearDownTestSuite() {
    delete shared_;
    shared_ = nullptr;
  }
  static fs::path base() { return *shared_ / "base"; }
  fs::path copy_of_base() {
    const fs::path copy = folder_ / "copy";
    fs::remove_all(copy);
    fs::copy(base(), copy, fs::copy_options::recursive);
    return copy;
  }
  static Error error_of(const fs::path& folder, const StableDiffusionOptions& options = {}) {
    try {
      load_stable_diffusion(folder, options);
    } catch (const Error& error) {
      return error;
    }
    ADD_FAILURE() << "loaded '" << folder.string() << "'";
    return Error(ErrorKind::internal, "");
  }
  static void replace(const fs::path& file, const std::string& from, const std::string& to) {
    std::ifstream in(file);
    std::string text(std::istreambuf_iterator<char>(in), {});
    ASSERT_NE(text.find(from), text.npos) << from;
    text.replace(text.find(from), from.size(), to);
    std::ofstream(file) << text;
  }

  static TempDir* shared_;
  TempDir folder_;
};
TempDir* StableDiffusionBase::shared_ = nullptr;

/// SHA-256 of every file under `folder`, by name.
std::map<std::string, std::string> hashes(const fs::path& folder) {
  std::map<std::string, std::string> found;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) found[entry.path().lexically_relative(folder)] = sha256_file(entry.path());
  }
  return found;
}

TEST_F(StableDiffusionBase, LoadsAndRunsEveryPart) {
  const StableDiffusion loaded = load_stable_diffusion(base());
  const at::Tensor input_ids = (*loaded.tokenizer)({"a photo of a cat"});
  EXPECT_EQ(input_ids.sizes(), at::IntArrayRef({1, 77}));
  const at::Tensor hidden = loaded.text_encoder->forward(input_ids).last_hidden_state;
  const at::Tensor moments = loaded.vae->encode_moments(at::linspace(-1, 1, 3 * 64 * 64).reshape({1, 3, 64, 64}));
  ASSERT_EQ(moments.sizes(), at::IntArrayRef({1, 8, 8, 8}));
  const at::Tensor noise_pred = loaded.unet->forward(moments.slice(1, 0, 4), at::full({1}, 10, at::kLong), hidden);
  ASSERT_EQ(noise_pred.sizes(), at::IntArrayRef({1, 4, 8, 8}));
  // Random weights must keep the signal alive and bounded, or tests on this base would compare nothing.
  for (const at::Tensor& x : {hidden, moments, noise_pred}) {
    const double spread = x.std().item<double>();
    EXPECT_GT(spread, 0.05);
    EXPECT_LT(spread, 5);
  }
}

TEST_F(StableDiffusionBase, WeightsAreFrozenAndInTheTypeAskedFor) {
  const StableDiffusion loaded = load_stable_diffusion(base(), {.dtype = at::kBFloat16});
  for (const auto& parameter : loaded.unet->parameters()) {
    EXPECT_EQ(parameter.scalar_type(), at::kBFloat16);
    EXPECT_FALSE(parameter.requires_grad());
  }
}

TEST_F(StableDiffusionBase, ModelIndexIsNotNeeded) {
  const fs::path copy = copy_of_base();
  fs::remove(copy / "model_index.json");
  EXPECT_NE(load_stable_diffusion(copy).unet, nullptr);
}

TEST_F(StableDiffusionBase, NamesWhatIsMissing) {
  for (const char* file :
       {"unet/config.json", "vae/config.json", "text_encoder/config.json", "scheduler/scheduler_config.json"}) {
    const fs::path copy = copy_of_base();
    fs::remove(copy / file);
    const Error error = error_of(copy);
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.message(), HasSubstr("there is no '" + std::string(file) + "'"));
    EXPECT_THAT(error.hint(), HasSubstr("init-base"));
  }
  const fs::path copy = copy_of_base();
  fs::remove(copy / "unet/diffusion_pytorch_model.safetensors");
  EXPECT_THAT(error_of(copy).message(), HasSubstr("neither 'diffusion_pytorch_model.safetensors'"));
}

TEST_F(StableDiffusionBase, AHubNameGetsAHintToDownloadIt) {
  const Error error = error_of("stable-diffusion-v1-5/stable-diffusion-v1-5");
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.hint(), HasSubstr("hf download stable-diffusion-v1-5/stable-diffusion-v1-5"));
  EXPECT_THAT(error_of("/no/such/folder").hint(), HasSubstr("init-base"));
}

TEST_F(StableDiffusionBase, RefusesPartsThatDontFit) {
  const fs::path copy = copy_of_base();
  replace(copy / "unet/config.json", "\"cross_attention_dim\": 64", "\"cross_attention_dim\": 32");
  EXPECT_THAT(error_of(copy).message(),
              HasSubstr("cross_attention_dim is 32, but the text encoder's hidden_size is 64"));
  const fs::path inpainting = copy_of_base();
  replace(inpainting / "unet/config.json", "\"in_channels\": 4", "\"in_channels\": 9");
  EXPECT_THAT(error_of(inpainting).message(), HasSubstr("in_channels is 9"));
  const fs::path other = copy_of_base();
  replace(other / "unet/config.json", "\"layers_per_block\": 2", "\"layers_per_block\": 1");
  EXPECT_THAT(error_of(other).message(), HasSubstr("unexpected keys"));
}

TEST_F(StableDiffusionBase, TakesAnotherVaeByItsFolderOrItsPipeline) {
  init_base("tiny-sd15", folder_ / "other", 2, "");
  const at::Tensor pixel_values = at::ones({1, 3, 64, 64});
  const at::Tensor own = load_stable_diffusion(base()).vae->encode_moments(pixel_values);
  const at::Tensor other = load_stable_diffusion(folder_ / "other").vae->encode_moments(pixel_values);
  EXPECT_FALSE(at::equal(own, other));
  for (const fs::path& vae : {folder_ / "other", folder_ / "other/vae"}) {
    EXPECT_TRUE(at::equal(load_stable_diffusion(base(), {.vae_folder = vae}).vae->encode_moments(pixel_values), other));
  }
  EXPECT_EQ(error_of(base(), {.vae_folder = "/no/vae"}).kind(), ErrorKind::usage);
}

TEST_F(StableDiffusionBase, PredictionTypeCanBeOverridden) {
  EXPECT_EQ(load_stable_diffusion(base()).noise_scheduler->config().prediction_type, "epsilon");
  EXPECT_EQ(
      load_stable_diffusion(base(), {.prediction_type = "v_prediction"}).noise_scheduler->config().prediction_type,
      "v_prediction");
}

TEST_F(StableDiffusionBase, TheHashChangesWithEveryFileThatIsRead) {
  const std::string original = base_model_hash(base());
  EXPECT_EQ(original.size(), 64u);
  EXPECT_EQ(base_model_hash(copy_of_base()), original) << "the hash must not depend on where the base lies";
  for (const auto& [name, hash] : hashes(base())) {
    const fs::path copy = copy_of_base();
    std::fstream file(copy / name, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(-1, std::ios::end);
    file.put(name.ends_with("config.json") ? ' ' : '!');  // configs are read for the hash: they must stay JSON
    file.close();
    if (name == "model_index.json") {
      EXPECT_EQ(base_model_hash(copy), original);
    } else {
      EXPECT_NE(base_model_hash(copy), original) << name;
    }
  }
  init_base("tiny-sd15", folder_ / "other", 2, "");
  EXPECT_NE(base_model_hash(base(), {.vae_folder = folder_ / "other"}), original);
}

TEST_F(StableDiffusionBase, InitBaseWritesTheSameBytesForTheSameSeed) {
  init_base("tiny-sd15", folder_ / "again", 1, "");
  init_base("tiny-sd15", folder_ / "other", 2, "");
  EXPECT_EQ(hashes(folder_ / "again"), hashes(base()));
  EXPECT_NE(hashes(folder_ / "other"), hashes(base()));
}

TEST_F(StableDiffusionBase, InitBaseLeavesWhatIsThereAlone) {
  fs::create_directory(folder_ / "empty");
  init_base("tiny-sd21", folder_ / "empty/", 1, "");
  EXPECT_EQ(load_stable_diffusion(folder_ / "empty").noise_scheduler->config().prediction_type, "v_prediction");
  const auto before = hashes(folder_.path());
  EXPECT_THROW(init_base("tiny-sd15", folder_ / "empty", 1, ""), Error);
  EXPECT_THROW(init_base("tiny-sd14", folder_ / "new", 1, ""), Error);
  EXPECT_THROW(init_base("tiny-sd15", folder_ / "new", 1, "/no/vocabulary.gz"), Error);
  EXPECT_EQ(hashes(folder_.path()), before);
}

TEST_F(StableDiffusionBase, InitBaseRefusesAVocabularyThatIsNone) {
  std::ofstream(folder_ / "v") << "#version\na b\nnonsense\n";
  try {
    init_base("tiny-sd15", folder_ / "new", 1, folder_ / "v");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr("line 3"));
  }
  EXPECT_FALSE(fs::exists(folder_ / "new"));
}

}  // namespace
}  // namespace lorashard
