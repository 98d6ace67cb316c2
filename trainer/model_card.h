// README.md of a run directory: the model card that the Hub and people read. Called by one rank.
#pragma once
#include <filesystem>
#include <string>

#include "trainer/recipe.h"

namespace lorashard {

/// What the card says of a run that isn't in its recipe.
struct ModelCardFacts {
  int64_t num_samples = 0, global_step = 0, num_parameters = 0;
  std::string pack_hash = {}, base_hash = {};
  bool is_sdxl = false;
  std::string sample_sheet = {};  ///< newest sheet of validation pictures, beside the card; empty: none
};

/// The card's text: front matter with base_model and tags as diffusers' scripts write them, how to load it, how it was trained.
/// `recipe` is resolved.
std::string model_card(const Recipe& recipe, const ModelCardFacts& facts);

/// Writes it to output_dir/README.md. A README.md that isn't one of ours is somebody's work and stays.
void write_model_card(const std::filesystem::path& output_dir, const Recipe& recipe, const ModelCardFacts& facts);

}  // namespace lorashard
