// Pictures made by all ranks together: each makes its share, rank 0 gets them all. Validation and `lorashard generate`
// call it. Which rank makes a picture changes nothing about it (models/text_to_image.h).
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/image.h"
#include "dist/communicator.h"
#include "models/stable_diffusion.h"
#include "models/text_to_image.h"

namespace lorashard {

struct PictureJob {
  TextToImageOptions options;
  uint64_t number = 0;  ///< of options.seed
};

/// What becomes of a picture whose pixels are NaN: an error, or a black picture and a warning.
enum class NotFinite { error, black };

/// Makes all `jobs`, the same on every rank, in rounds of one picture a rank; on rank 0 `take(i, picture)` is called
/// for each in order. Collective. What goes wrong on one rank is thrown on all; Error(stopped) follows a request to
/// stop on any rank, at the latest after the picture under way.
void make_pictures(Communicator& communicator, const StableDiffusion& base, const std::vector<PictureJob>& jobs,
                   const std::function<void(size_t, Image)>& take, NotFinite not_finite = NotFinite::error);

/// Pixels [height, width, 3] of uint8 as an Image.
Image to_image(const at::Tensor& pixels);

/// "DPM++ 2M Karras": the name under which other programs know a scheduler.
std::string scheduler_in_words(const TextToImageOptions& options);

/// How the picture was made, as AUTOMATIC1111's web UI writes it into a PNG's "parameters" and many programs read it.
/// `adapters`: "name:scale" each.
std::string picture_parameters(const PictureJob& job, const std::string& model,
                               const std::vector<std::string>& adapters);

}  // namespace lorashard
