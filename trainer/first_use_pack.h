// Folders of pictures that a recipe names, and the packs that are made of plain ones when a run first needs them, in output_dir.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>

#include "data/pack.h"
#include "trainer/recipe.h"

namespace lorashard {

struct PictureSource {
  std::string key;               ///< of the recipe: "data.train_data_dir"
  std::filesystem::path folder;  ///< what the recipe names: a pack, a folder of pictures or parquet files, or a parquet file
  std::filesystem::path pack;    ///< where the pack of a plain folder lies, whether or not it is there yet
  PackOptions options;           ///< how it is packed
};

/// What is trained on: data.train_data_dir, or with DreamBooth dreambooth.instance_data_dir.
PictureSource training_pictures(const Recipe& recipe);
/// dreambooth.class_data_dir, of which the first num_class_images pictures are packed.
PictureSource class_pictures(const Recipe& recipe);

/// True when the folder is a pack itself. Throws Error(usage) naming the key when it is no folder.
bool is_packed(const PictureSource& source);

/// Makes source.pack where it is absent. A file beside it, pack.source, remembers which folder it was made of: Error(usage) when the recipe
/// names another one now, since training on the old pictures would go unnoticed. Called by one rank.
void pack_on_first_use(const PictureSource& source);

}  // namespace lorashard
