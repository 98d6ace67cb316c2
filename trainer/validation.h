// Pictures made while training, with the adapter as it is: every N steps or epochs, at the start and at the end as the
// recipe says. All ranks share the work; rank 0 writes samples/step-000500.png (the sheet), samples/step-000500/*.png
// (each picture) and the event file. Nothing of the training changes. Made and called by the Trainer.
#pragma once
#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "data/image.h"
#include "dist/communicator.h"
#include "models/lora.h"
#include "models/stable_diffusion.h"
#include "trainer/picture_maker.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Whether `recipe` (resolved) wants pictures, or the loss on held-out ones, after `step` optimizer steps; step 0 is before the first. An epoch ends
/// with the step that has seen its last image.
bool validation_due(const Recipe& recipe, int64_t num_samples, int64_t step);

/// The sheet of `step` in `output_dir`: "samples/step-000500.png".
std::filesystem::path sample_sheet(const std::filesystem::path& output_dir, int64_t step);
/// The newest sheet there, if any.
std::optional<std::filesystem::path> newest_sample_sheet(const std::filesystem::path& output_dir);

/// Of all pictures, but for their prompts. Throws Error(usage) or Error(bad_data) for settings no picture can be made with.
TextToImageOptions validation_options(const Recipe& recipe, const StableDiffusion& base);

class Validation {
 public:
  /// What rank 0 does with a sheet besides writing it: its PNG file, and whether it was made just now.
  using Show = std::function<void(const std::string& png, bool is_new)>;
  /// Runs what writes files on rank 0; what goes wrong there is its business.
  using Write = std::function<void(const std::function<void()>& action)>;

  /// Throws as validation_options(). The arguments must outlive it.
  Validation(const Recipe& recipe, const StableDiffusion& base, const LoraAdapter& adapter, Communicator& communicator,
             int64_t num_samples);

  bool due(int64_t step) const { return validation_due(recipe_, num_samples_, step); }
  /// Makes the pictures of `step`, unless the sheet is there and was made with these settings and these weights. False on
  /// all ranks when a request to stop ended it: then nothing is written. Collective.
  bool run(int64_t step, const Write& write, const Show& show);

 private:
  std::vector<PictureJob> jobs() const;
  /// Settings and weights in one text, which the sheet carries: what a finished sheet is known by.
  std::string identity(int64_t step) const;
  void write_pictures(int64_t step, const std::vector<PictureJob>& jobs, const std::vector<Image>& pictures,
                      const Show& show) const;

  const Recipe& recipe_;
  const StableDiffusion& base_;
  const LoraAdapter& adapter_;
  Communicator& communicator_;
  const int64_t num_samples_;
  TextToImageOptions options_;  // but for the prompt
};

}  // namespace lorashard
