#include "data/image_transform.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "dist/philox.h"

namespace lorashard {
namespace {

/// Red is the column, green the row, blue 255.
Image coordinates(int64_t height, int64_t width) {
  Image image{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      image.rgb.insert(image.rgb.end(), {static_cast<uint8_t>(x), static_cast<uint8_t>(y), 255});
    }
  }
  return image;
}

struct Result {
  TransformedImage where;
  at::Tensor pixel_values;
};

Result transform(const Image& image, const TransformOptions& options, uint64_t slot, bool class_image = false) {
  const auto pixel_values = at::full({3, options.resolution, options.resolution}, -9, at::kFloat);
  return {transform_image(image, options, 5, slot, class_image, pixel_values), pixel_values};
}

float normalised(int64_t byte) { return (static_cast<float>(byte) / 255.0f - 0.5f) / 0.5f; }

TEST(ImageTransform, TheShortSideBecomesTheResolutionAndTheLongOneIsRoundedDown) {
  const auto size_of = [](int64_t height, int64_t width, int64_t resolution) {
    const ImageSize size = resized_size({height, width}, resolution);
    return std::pair{size.height, size.width};
  };
  EXPECT_EQ(size_of(768, 1024, 512), (std::pair<int64_t, int64_t>{512, 682}));
  EXPECT_EQ(size_of(1024, 768, 512), (std::pair<int64_t, int64_t>{682, 512}));
  EXPECT_EQ(size_of(100, 100, 512), (std::pair<int64_t, int64_t>{512, 512}));
  EXPECT_EQ(size_of(333, 1000, 64), (std::pair<int64_t, int64_t>{64, 192}));
}

TEST(ImageTransform, BytesBecomeTheFloatsOfToTensorAndNormalize) {
  Image image{16, 16, {}};
  for (int i = 0; i < 256; ++i) image.rgb.insert(image.rgb.end(), 3, static_cast<uint8_t>(i));
  const auto result = transform(image, {.resolution = 16, .center_crop = true}, 0);
  const auto values = result.pixel_values[1].flatten();
  for (int i = 0; i < 256; ++i) ASSERT_EQ(values[i].item<float>(), normalised(i)) << i;
  EXPECT_EQ(values[0].item<float>(), -1);
  EXPECT_EQ(values[255].item<float>(), 1);
}

TEST(ImageTransform, TheCenterCropRoundsHalvesToEven) {
  // 8 of 11 leaves 3: 1.5 becomes 2; 8 of 13 leaves 5: 2.5 becomes 2.
  const TransformOptions options{.resolution = 8, .center_crop = true};
  EXPECT_EQ(transform(coordinates(8, 11), options, 0).where.crop_left, 2);
  EXPECT_EQ(transform(coordinates(8, 13), options, 0).where.crop_left, 2);
  EXPECT_EQ(transform(coordinates(13, 8), options, 0).where.crop_top, 2);
}

TEST(ImageTransform, TheRandomCropTakesTheTwoFirstWordsOfItsBlock) {
  std::set<int64_t> lefts;
  for (uint64_t slot = 0; slot < 100; ++slot) {
    const auto result = transform(coordinates(8, 20), {.resolution = 8}, slot);
    const auto words = philox(5, slot, Purpose::crop, 0);
    EXPECT_EQ(result.where.crop_top, 0);
    EXPECT_EQ(result.where.crop_left, static_cast<int64_t>(uint64_t{words[1]} * 13 >> 32));
    EXPECT_EQ(result.pixel_values[0][3][2].item<float>(), normalised(result.where.crop_left + 2));
    EXPECT_EQ(result.pixel_values[1][3][2].item<float>(), normalised(3));
    lefts.insert(result.where.crop_left);
  }
  EXPECT_EQ(lefts.size(), 13);
}

TEST(ImageTransform, AFlippedPictureIsTheMirrorOfTheUnflipped) {
  int flipped = 0;
  for (uint64_t slot = 0; slot < 40; ++slot) {
    const auto plain = transform(coordinates(10, 9), {.resolution = 8}, slot);
    const auto random = transform(coordinates(10, 9), {.resolution = 8, .random_flip = true}, slot);
    EXPECT_FALSE(plain.where.flipped);
    EXPECT_EQ(random.where.flipped, uniform(5, slot, Purpose::flip) < 0.5);
    const auto expected = random.where.flipped ? plain.pixel_values.flip(2) : plain.pixel_values;
    EXPECT_TRUE(at::equal(random.pixel_values, expected));
    flipped += random.where.flipped;
  }
  EXPECT_GT(flipped, 8);
  EXPECT_LT(flipped, 32);
}

TEST(ImageTransform, AClassImageDrawsItsOwnCropAndFlip) {
  int other_crop = 0, other_flip = 0;
  for (uint64_t slot = 0; slot < 40; ++slot) {
    const TransformOptions options{.resolution = 8, .random_flip = true};
    const auto instance = transform(coordinates(8, 60), options, slot).where;
    const auto class_image = transform(coordinates(8, 60), options, slot, true).where;
    other_crop += instance.crop_left != class_image.crop_left;
    other_flip += instance.flipped != class_image.flipped;
  }
  EXPECT_GT(other_crop, 30);
  EXPECT_GT(other_flip, 8);
}

TEST(ImageTransform, TheOriginalSizeIsThatBeforeTheResize) {
  const auto where = transform(coordinates(30, 50), {.resolution = 16}, 0).where;
  EXPECT_EQ(where.original_size.height, 30);
  EXPECT_EQ(where.original_size.width, 50);
}

}  // namespace
}  // namespace lorashard
