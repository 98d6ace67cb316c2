#include "trainer/model_card.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/durable_file.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

Recipe resolved_recipe() {
  Recipe recipe;
  recipe.output_dir = "runs/pets";
  recipe.model.pretrained_model_name_or_path = "bases/a: \"good\" one";
  recipe.data.train_data_dir = "pack";
  recipe.train.max_train_steps = 10;
  resolve_recipe(recipe, 1, 1, 12);
  return recipe;
}

TEST(ModelCard, NamesTheBaseWhereTheHubLooksForIt) {
  const std::string card = model_card(resolved_recipe(), {.num_samples = 12, .global_step = 10, .num_parameters = 64});
  EXPECT_THAT(card, StartsWith("---\nbase_model: \"bases/a: \\\"good\\\" one\"\n"));
  EXPECT_THAT(card, HasSubstr("- lora\n"));
  EXPECT_THAT(card, HasSubstr("# pets\n"));
}

TEST(ModelCard, OfDreamBoothCarriesTheInstancePrompt) {
  Recipe recipe;
  recipe.task = "dreambooth";
  recipe.output_dir = "runs/sks";
  recipe.model.pretrained_model_name_or_path = "base";
  recipe.dreambooth.instance_data_dir = "dog";
  recipe.dreambooth.instance_prompt = "a photo of sks \"dog\"";
  recipe.train.max_train_steps = 10;
  resolve_recipe(recipe, 1, 1, 5);
  const std::string card = model_card(recipe, {.num_samples = 5, .global_step = 10, .num_parameters = 64});
  const std::string front = card.substr(0, card.find("\n---\n"));
  EXPECT_THAT(front, HasSubstr("\ninstance_prompt: \"a photo of sks \\\"dog\\\"\"\n"));
  EXPECT_THAT(front, HasSubstr("\n- dreambooth"));
  EXPECT_THAT(card, HasSubstr("on 5 pictures of one subject"));
  EXPECT_THAT(card, HasSubstr("pipeline(\"a photo of sks"));
}

TEST(ModelCard, SaysHowSdxlAndASingleFileAreLoaded) {
  Recipe recipe = resolved_recipe();
  EXPECT_THAT(model_card(recipe, {}), HasSubstr("StableDiffusionPipeline.from_pretrained(\"bases/a"));
  recipe.model.pretrained_model_name_or_path = "sd_xl_base_1.0.safetensors";
  const std::string card = model_card(recipe, {.is_sdxl = true});
  EXPECT_THAT(card, HasSubstr("StableDiffusionXLPipeline.from_single_file(\"sd_xl_base_1.0.safetensors\")"));
  EXPECT_THAT(card, HasSubstr("- stable-diffusion-xl\n- stable-diffusion-xl-diffusers\n"));
}

TEST(ModelCard, HasTheLicenceOfTheFamilyOrTheRecipesOwn) {
  Recipe recipe = resolved_recipe();
  EXPECT_THAT(model_card(recipe, {}), HasSubstr("\nlicense: \"creativeml-openrail-m\"\n"));
  EXPECT_THAT(model_card(recipe, {.is_sdxl = true}), HasSubstr("\nlicense: \"openrail++\"\n"));
  recipe.output.license = "cc-by-4.0";
  EXPECT_THAT(model_card(recipe, {}), HasSubstr("\nlicense: \"cc-by-4.0\"\n"));
}

TEST(ModelCard, HoldsARecipeThatReadsBack) {
  const Recipe recipe = resolved_recipe();
  const std::string card = model_card(recipe, {});
  const size_t begin = card.find("```toml\n") + 8;
  const Recipe read = parse_recipe(card.substr(begin, card.rfind("```") - begin), "the card");
  EXPECT_EQ(print_recipe(read), print_recipe(recipe));
}

TEST(ModelCard, ReplacesItsOwnAndLeavesAnothers) {
  const TempDir folder;
  write_model_card(folder.path(), resolved_recipe(), {.global_step = 10});
  write_model_card(folder.path(), resolved_recipe(), {.global_step = 20});
  EXPECT_THAT(read_file(folder / "README.md"), HasSubstr("| optimizer steps | 20 |"));
  write_durably(folder / "README.md", std::string_view("my notes"));
  write_model_card(folder.path(), resolved_recipe(), {.global_step = 30});
  EXPECT_EQ(read_file(folder / "README.md"), "my notes");
}

}  // namespace
}  // namespace lorashard
