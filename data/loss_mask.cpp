#include "data/loss_mask.h"

#include "dist/error.h"

namespace lorashard {

void write_loss_mask(const Image& mask, const TransformedImage& picture, int64_t vae_scale_factor,
                     std::span<float> out) {
  const int64_t pixels = vae_scale_factor;  // of a latent's side
  const Image cropped = resize_region(mask, picture.framing.resized, cropped_region(picture), Interpolation::box);
  const int64_t height = cropped.height / pixels, width = cropped.width / pixels;
  LORASHARD_CHECK(height * width == static_cast<int64_t>(out.size()), "a mask of {} latents for {} x {} pixels",
                  out.size(), cropped.width, cropped.height);
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      int64_t sum = 0;  // whole numbers: no order to depend on
      for (int64_t row = y * pixels; row < (y + 1) * pixels; ++row)
        for (int64_t column = x * pixels; column < (x + 1) * pixels; ++column)
          sum += cropped.rgb[3 * (row * cropped.width + column)];
      const double mean = static_cast<double>(sum) / static_cast<double>(255 * pixels * pixels);
      out[y * width + (picture.flipped ? width - 1 - x : x)] = static_cast<float>(mean);
    }
  }
}

}  // namespace lorashard
