#include "data/loss_mask.h"

#include <cmath>

#include "dist/error.h"

namespace lorashard {

void write_loss_mask(const Image& mask, const TransformedImage& picture, int64_t resolution, std::span<float> out) {
  const auto side = static_cast<int64_t>(std::lround(std::sqrt(static_cast<double>(out.size()))));
  LORASHARD_CHECK(side > 0 && side * side == static_cast<int64_t>(out.size()) && resolution % side == 0,
                  "a mask of {} latents for resolution {}", out.size(), resolution);
  const int64_t pixels = resolution / side;  // of a latent's side
  const ImageSize resized = resized_size({mask.height, mask.width}, resolution);
  const Image cropped = resize_region(mask, resized, cropped_region(picture, resized, resolution), Interpolation::box);
  for (int64_t y = 0; y < side; ++y) {
    for (int64_t x = 0; x < side; ++x) {
      int64_t sum = 0;  // whole numbers: no order to depend on
      for (int64_t row = y * pixels; row < (y + 1) * pixels; ++row)
        for (int64_t column = x * pixels; column < (x + 1) * pixels; ++column)
          sum += cropped.rgb[3 * (row * resolution + column)];
      const double mean = static_cast<double>(sum) / static_cast<double>(255 * pixels * pixels);
      out[y * side + (picture.flipped ? side - 1 - x : x)] = static_cast<float>(mean);
    }
  }
}

}  // namespace lorashard
