#include "data/image_transform.h"

#include <array>
#include <cmath>
#include <utility>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

// torchvision rounds with Python's round(): halves to even.
int64_t center_position(int64_t size, int64_t crop) { return std::lrint(static_cast<double>(size - crop) / 2.0); }

int64_t random_position(uint32_t word, int64_t num_positions) {
  return static_cast<int64_t>((uint64_t{word} * static_cast<uint64_t>(num_positions)) >> 32);
}

/// ((byte / 255) - 0.5) / 0.5 in fp32, as ToTensor and Normalize compute it.
const std::array<float, 256>& normalised() {
  static const std::array<float, 256> table = [] {
    std::array<float, 256> values{};
    for (int i = 0; i < 256; ++i) values[i] = (static_cast<float>(i) / 255.0f - 0.5f) / 0.5f;
    return values;
  }();
  return table;
}

void write_planes(const Image& image, bool flipped, float* out) {
  const auto& table = normalised();
  const int64_t plane = image.height * image.width;
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* row = &image.rgb[y * image.width * 3];
    for (int64_t channel = 0; channel < 3; ++channel) {
      float* target = out + channel * plane + y * image.width;
      if (flipped) {
        for (int64_t x = 0; x < image.width; ++x) target[image.width - 1 - x] = table[row[3 * x + channel]];
      } else {
        for (int64_t x = 0; x < image.width; ++x) target[x] = table[row[3 * x + channel]];
      }
    }
  }
}

}  // namespace

ImageSize resized_size(ImageSize size, int64_t resolution) {
  const bool tall = size.width <= size.height;
  const int64_t short_side = tall ? size.width : size.height, long_side = tall ? size.height : size.width;
  const int64_t new_long = resolution * long_side / short_side;
  return tall ? ImageSize{new_long, resolution} : ImageSize{resolution, new_long};
}

Framing square_framing(ImageSize size, int64_t resolution) {
  return {.resized = resized_size(size, resolution), .cropped = {resolution, resolution}};
}

TransformedImage plan_transform(ImageSize size, const Framing& framing, const TransformOptions& options, uint64_t seed,
                                uint64_t slot, bool class_image) {
  const auto& [resized, cropped] = framing;
  LORASHARD_CHECK(resized.height >= cropped.height && resized.width >= cropped.width, "{} x {} of {} x {}",
                  cropped.width, cropped.height, resized.width, resized.height);
  TransformedImage plan{.original_size = size, .framing = framing};
  if (options.center_crop) {
    plan.crop_top = center_position(resized.height, cropped.height);
    plan.crop_left = center_position(resized.width, cropped.width);
  } else {
    const auto words = philox(seed, slot, purpose_of(Purpose::crop, class_image), 0);
    plan.crop_top = random_position(words[0], resized.height - cropped.height + 1);
    plan.crop_left = random_position(words[1], resized.width - cropped.width + 1);
  }
  plan.flipped = options.random_flip && uniform(seed, slot, purpose_of(Purpose::flip, class_image)) < 0.5;
  plan.flip_before_crop = options.flip_before_crop;
  return plan;
}

Region cropped_region(const TransformedImage& picture) {
  const auto& [resized, cropped] = picture.framing;
  // The crop at x of the flipped picture is the flipped crop at resized - cropped - x.
  const bool mirrored = picture.flipped && picture.flip_before_crop;
  const int64_t left = mirrored ? resized.width - cropped.width - picture.crop_left : picture.crop_left;
  return {picture.crop_top, left, cropped.height, cropped.width};
}

void apply_transform(const Image& image, Interpolation interpolation, const TransformedImage& plan,
                     at::Tensor pixel_values) {
  const ImageSize& cropped = plan.framing.cropped;
  LORASHARD_CHECK(pixel_values.numel() == 3 * cropped.height * cropped.width && pixel_values.is_contiguous() &&
                      pixel_values.scalar_type() == at::kFloat,
                  "pixel_values of {} elements for {} x {} pixels", pixel_values.numel(), cropped.width,
                  cropped.height);
  write_planes(resize_region(image, plan.framing.resized, cropped_region(plan), interpolation), plan.flipped,
               pixel_values.mutable_data_ptr<float>());
}

TransformedImage transform_image(const Image& image, const TransformOptions& options, uint64_t seed, uint64_t slot,
                                 bool class_image, at::Tensor pixel_values) {
  const ImageSize size{image.height, image.width};
  const TransformedImage plan =
      plan_transform(size, square_framing(size, options.resolution), options, seed, slot, class_image);
  apply_transform(image, options.interpolation, plan, std::move(pixel_values));
  return plan;
}

}  // namespace lorashard
