// The recipes and the pages that ship: they must be what this version's parser takes and what its field list says.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "trainer/recipe.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

// Set by ctest; a test program run by hand is run from the checkout.
fs::path source_dir() {
  const char* given = std::getenv("LORASHARD_SOURCE_DIR");
  return given ? fs::path(given) : fs::current_path();
}

std::string text_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<fs::path> files_ending(const fs::path& folder, const std::string& extension) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.push_back(entry.path());
  }
  return files;
}

// The fenced toml blocks of a page.
std::vector<std::string> toml_blocks(const std::string& page) {
  std::vector<std::string> blocks;
  for (size_t begin = page.find("```toml\n"); begin != std::string::npos; begin = page.find("```toml\n", begin)) {
    begin += 8;
    const size_t end = page.find("\n```", begin);
    EXPECT_NE(end, std::string::npos) << "a block without an end";
    if (end == std::string::npos) break;
    blocks.push_back(page.substr(begin, end + 1 - begin));
  }
  return blocks;
}

TEST(RecipeFiles, EveryRecipeThatShipsLoadsAndResolves) {
  const fs::path folder = source_dir() / "recipes";
  const std::string index = text_of(folder / "README.md");
  int loaded = 0;
  for (const fs::path& path : files_ending(folder, ".toml")) {
    Recipe recipe = load_recipe(path);
    resolve_recipe(recipe, 2, 2, 833);
    EXPECT_NE(index.find("(" + path.filename().string() + ")"), std::string::npos)
        << path << " is not in recipes/README.md";
    ++loaded;
  }
  EXPECT_GE(loaded, 3);
}

TEST(RecipeFiles, PokemonRecipeIsTheGuidesCommand) {
  Recipe recipe = load_recipe(source_dir() / "recipes/sd15_pokemon.toml");
  EXPECT_EQ(recipe.data.resolution, 512);
  EXPECT_TRUE(recipe.data.center_crop && recipe.data.random_flip);
  EXPECT_EQ(recipe.data.dataloader_num_workers, 8);
  EXPECT_EQ(recipe.train.train_batch_size, 1);
  EXPECT_EQ(recipe.train.mixed_precision, "fp16");
  EXPECT_EQ(recipe.train.max_grad_norm, 1.0);
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4);
  EXPECT_EQ(recipe.lr_scheduler.lr_scheduler, "cosine");
  EXPECT_EQ(recipe.lr_scheduler.lr_warmup_steps, 0);
  EXPECT_EQ(recipe.checkpoint.checkpointing_steps, 500);
  EXPECT_EQ(recipe.seed, 1337);
  resolve_recipe(recipe, 1, 1, 833);
  EXPECT_EQ(recipe.train.total_batch_size, 4);
  EXPECT_EQ(recipe.train.max_train_steps, 15000);
}

TEST(RecipeFiles, DreamBoothRecipeIsTheGuidesCommand) {
  Recipe recipe = load_recipe(source_dir() / "recipes/sd15_dreambooth.toml");
  EXPECT_EQ(recipe.task, "dreambooth");
  EXPECT_EQ(recipe.dreambooth.instance_prompt, "a photo of sks dog");
  EXPECT_FALSE(recipe.dreambooth.with_prior_preservation);
  EXPECT_EQ(recipe.data.resolution, 512);
  EXPECT_EQ(recipe.train.train_batch_size, 1);
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4);
  EXPECT_EQ(recipe.lr_scheduler.lr_scheduler, "constant");
  EXPECT_EQ(recipe.lr_scheduler.lr_warmup_steps, 0);
  EXPECT_EQ(recipe.checkpoint.checkpointing_steps, 100);
  EXPECT_EQ(recipe.validation.validation_epochs, 50);
  EXPECT_EQ(recipe.seed, 0);
  resolve_recipe(recipe, 1, 1, 5);
  EXPECT_EQ(recipe.train.total_batch_size, 1);
  EXPECT_EQ(recipe.train.max_train_steps, 500);
}

TEST(RecipeFiles, SdxlDreamBoothRecipeIsTheExamplesCommand) {
  Recipe recipe = load_recipe(source_dir() / "recipes/sdxl_dreambooth.toml");
  EXPECT_EQ(recipe.task, "dreambooth");
  EXPECT_TRUE(recipe.lora.train_text_encoder);
  EXPECT_EQ(recipe.data.resolution, 1024);
  EXPECT_EQ(recipe.train.mixed_precision, "fp16");
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4);
  EXPECT_EQ(recipe.optimizer.text_encoder_lr, 5e-6);
  EXPECT_EQ(recipe.optimizer.adam_weight_decay, 1e-4);
  EXPECT_EQ(recipe.optimizer.adam_weight_decay_text_encoder, 1e-3);
  EXPECT_EQ(recipe.validation.validation_epochs, 25);
  resolve_recipe(recipe, 1, 1, 5);
  EXPECT_EQ(recipe.train.total_batch_size, 4);
  EXPECT_EQ(recipe.train.max_train_steps, 500);
}

TEST(RecipeFiles, SdxlRecipeIsTheGuidesCommand) {
  Recipe recipe = load_recipe(source_dir() / "recipes/sdxl_text_to_image.toml");
  EXPECT_EQ(recipe.data.resolution, 1024);
  EXPECT_TRUE(recipe.data.random_flip && !recipe.data.center_crop);
  EXPECT_EQ(recipe.train.train_batch_size, 1);
  EXPECT_EQ(recipe.train.mixed_precision, "fp16");
  EXPECT_EQ(recipe.optimizer.learning_rate, 1e-4);
  EXPECT_EQ(recipe.lr_scheduler.lr_scheduler, "constant");
  EXPECT_EQ(recipe.lr_scheduler.lr_warmup_steps, 0);
  EXPECT_EQ(recipe.checkpoint.checkpointing_steps, 500);
  EXPECT_EQ(recipe.seed, 42);
  resolve_recipe(recipe, 1, 1, 833);
  EXPECT_EQ(recipe.train.max_train_steps, 2 * 833);
}

TEST(RecipeFiles, WholeRecipesInThePagesAreAccepted) {
  std::vector<fs::path> pages = files_ending(source_dir() / "docs", ".md");
  pages.push_back(source_dir() / "README.md");
  pages.push_back(source_dir() / "recipes/README.md");
  int accepted = 0;
  for (const fs::path& page : pages) {
    for (const std::string& block : toml_blocks(text_of(page))) {
      if (block.find("pretrained_model_name_or_path") == std::string::npos) continue;  // a part of a recipe
      EXPECT_NO_THROW(parse_recipe(block, page.string())) << block;
      ++accepted;
    }
  }
  EXPECT_GE(accepted, 1);
}

TEST(RecipeFiles, ReferencePageIsWhatTheFieldListSays) {
  EXPECT_EQ(text_of(source_dir() / "docs/recipe_reference.md"), recipe_reference_markdown())
      << "make it again: build/dev/lorashard help recipe --markdown > docs/recipe_reference.md";
}

}  // namespace
}  // namespace lorashard
