// data.train_data_dir as a plain folder of pictures: packed into output_dir/pack when a run first needs it. Called by one rank.
#pragma once
#include <filesystem>

#include "trainer/recipe.h"

namespace lorashard {

/// Where the pack of a plain picture folder lies, whether or not it is there yet.
std::filesystem::path first_use_pack(const std::filesystem::path& output_dir);

/// Makes it where it is absent. output_dir/pack.source remembers which folder it was made of: Error(usage) when the recipe names
/// another one now, since training on the old pictures would go unnoticed.
void pack_on_first_use(const Recipe& recipe, const std::filesystem::path& output_dir);

}  // namespace lorashard
