// DreamBooth's class pictures that class_data_dir lacks: made with the base model, shared by all ranks, kept one by one, so that a
// killed run makes none twice. Called by the Trainer before the class pack is made; `lorashard doctor` counts them.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "models/stable_diffusion.h"
#include "models/text_to_image.h"
#include "trainer/recipe.h"

namespace lorashard {

/// What is there and what is to be made. Pictures are numbered from 0; number n is Philox's picture n of the run's seed, so
/// it is the same whoever makes it, and when. Its name is "class-FINGERPRINT-00000n.png", where the fingerprint stands for all that its
/// pixels depend on; a picture of any other name counts as given, as in the reference scripts.
struct ClassPicturePlan {
  std::filesystem::path folder;
  TextToImageOptions options;
  std::string fingerprint;       ///< 12 hex digits
  int64_t num_given = 0;         ///< pictures there that aren't of this fingerprint
  std::vector<int64_t> missing;  ///< numbers to make, so that given and made ones are num_class_images
  int64_t num_made = 0;          ///< of the numbers that are needed, those that are there

  std::filesystem::path path_of(int64_t number) const;
};

/// Looks at class_data_dir (which may be absent yet). One process. Throws Error(usage) for settings no picture can be made with.
ClassPicturePlan plan_class_pictures(const Recipe& recipe, const StableDiffusion& base, const std::string& base_hash);

/// Makes the missing ones, as rank 0 sees them. Collective; no rank waits for others inside a picture. Error(stopped) after a
/// request to stop: what is made is kept.
void make_class_pictures(Communicator& communicator, const Recipe& recipe, const StableDiffusion& base,
                         const std::string& base_hash);

}  // namespace lorashard
