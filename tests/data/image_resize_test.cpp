#include "data/image_resize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "data/image_resize_kernels.h"
#include "dist/error.h"

namespace lorashard {
namespace {

using testing::ElementsAreArray;

constexpr Interpolation kAll[] = {Interpolation::nearest, Interpolation::bilinear, Interpolation::bicubic,
                                  Interpolation::lanczos, Interpolation::box,      Interpolation::hamming};

Image make_picture(int64_t height, int64_t width) {
  Image image{height, width, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < 3; ++c) image.rgb.push_back(static_cast<uint8_t>(37 * y + 91 * x + 50 * c));
    }
  }
  return image;
}

Image random_picture(int64_t height, int64_t width, uint32_t seed) {
  std::mt19937 random(seed);
  Image image{height, width, std::vector<uint8_t>(height * width * 3)};
  for (auto& byte : image.rgb) byte = static_cast<uint8_t>(random());
  return image;
}

// The expected bytes of the next three tests were made with Pillow 13.0.0; tests/oracle/test_image_transform.py
// compares thousands more.
TEST(ImageResize, LanczosGivesPillowsBytes) {
  const uint8_t expected[] = {2,   49,  92,  37,  99,  190, 154, 176, 185, 213, 176, 32,  66,  88,  68,  42,
                              102, 192, 126, 170, 246, 48,  94,  158, 107, 177, 143, 154, 157, 97,  110, 16,
                              82,  66,  66,  153, 113, 189, 166, 172, 236, 131, 93,  144, 223, 177, 223, 94,
                              153, 211, 9,   6,   85,  131, 65,  152, 236, 182, 137, 140, 217, 59,  14};
  EXPECT_THAT(resize(make_picture(4, 5), {3, 7}, Interpolation::lanczos).rgb, ElementsAreArray(expected));
}

TEST(ImageResize, TakesTheVerticalPassFirstWherePillowDoes) {
  const uint8_t expected[] = {96,  126, 149, 125, 145, 127, 129, 139, 117, 105, 113, 124,
                              102, 122, 155, 132, 145, 130, 134, 142, 120, 107, 115, 131};
  EXPECT_THAT(resize(make_picture(12, 3), {2, 4}, Interpolation::bicubic).rgb, ElementsAreArray(expected));
}

TEST(ImageResize, NearestGivesPillowsBytes) {
  const uint8_t expected[] = {91, 141, 191, 17,  67,  117, 91, 141, 191, 17,  67,  117, 128, 178, 228,
                              54, 104, 154, 165, 215, 9,   91, 141, 191, 165, 215, 9,   91,  141, 191};
  EXPECT_THAT(resize(make_picture(3, 4), {5, 2}, Interpolation::nearest).rgb, ElementsAreArray(expected));
}

TEST(ImageResize, EveryKernelGivesTheSameBits) {
  const auto &portable = portable_resize_kernels(), &fastest = fastest_resize_kernels();
  std::printf("fastest kernels here: %s\n", fastest.name);
  std::mt19937 random(1);
  for (int i = 0; i < 200; ++i) {
    const auto side = [&] { return static_cast<int64_t>(random() % 90 + 1); };
    const Image image = random_picture(side(), side(), i);
    const ImageSize size{side(), side()};
    for (const auto interpolation : kAll) {
      const Region whole{0, 0, size.height, size.width};
      ASSERT_EQ(resize_region(image, size, whole, interpolation, &portable).rgb,
                resize_region(image, size, whole, interpolation, &fastest).rgb)
          << image.width << "x" << image.height << " to " << size.width << "x" << size.height;
    }
  }
}

TEST(ImageResize, ARegionIsThatPartOfTheWhole) {
  std::mt19937 random(2);
  for (int i = 0; i < 200; ++i) {
    const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
    const Image image = random_picture(below(60) + 1, below(60) + 1, i);
    const ImageSize size{i % 5 == 0 ? image.height : below(60) + 1, i % 5 == 1 ? image.width : below(60) + 1};
    Region region{below(size.height), below(size.width), 0, 0};
    region.height = below(size.height - region.top) + 1;
    region.width = below(size.width - region.left) + 1;
    for (const auto interpolation : kAll) {
      const Image whole = resize(image, size, interpolation), part = resize_region(image, size, region, interpolation);
      ASSERT_EQ(part.height, region.height);
      ASSERT_EQ(part.width, region.width);
      for (int64_t y = 0; y < region.height; ++y) {
        const auto* row = &whole.rgb[((region.top + y) * whole.width + region.left) * 3];
        ASSERT_TRUE(std::equal(row, row + region.width * 3, &part.rgb[y * region.width * 3])) << "row " << y;
      }
    }
  }
}

TEST(ImageResize, APlainPictureStaysPlain) {
  const Image plain{9, 14, std::vector<uint8_t>(9 * 14 * 3, 201)};
  for (const auto interpolation : kAll) {
    for (const ImageSize size : {ImageSize{5, 40}, {30, 7}, {90, 90}, {1, 1}}) {
      EXPECT_THAT(resize(plain, size, interpolation).rgb, testing::Each(201));
    }
  }
}

TEST(ImageResize, TheSameSizeIsACopy) {
  const Image image = random_picture(7, 5, 3);
  for (const auto interpolation : kAll) EXPECT_EQ(resize(image, {7, 5}, interpolation).rgb, image.rgb);
}

TEST(ImageResize, AnUnknownInterpolationIsAnErrorThatNamesTheKnown) {
  EXPECT_EQ(parse_interpolation("bicubic"), Interpolation::bicubic);
  try {
    parse_interpolation("lancsoz");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("'lancsoz'"), testing::HasSubstr("lanczos, box")));
  }
}

}  // namespace
}  // namespace lorashard
