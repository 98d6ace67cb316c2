#include "data/loss_mask.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "data/image_write.h"

namespace lorashard {
namespace {

/// White where `inside(y, x)`.
template <class F>
Image make_mask(int64_t height, int64_t width, F&& inside) {
  Image mask{height, width, {}};
  for (int64_t y = 0; y < height; ++y)
    for (int64_t x = 0; x < width; ++x) mask.rgb.insert(mask.rgb.end(), 3, inside(y, x) ? 255 : 0);
  return mask;
}

TEST(LossMask, IsTheMeanOverEachLatent) {
  const Image mask = make_mask(32, 32, [](int64_t y, int64_t x) { return x < 12 && y >= 8; });
  std::vector<float> latents(16);
  write_loss_mask(mask, {.framing = square_framing({32, 32}, 32)}, 8, latents);
  const std::vector<float> expected = {0, 0, 0, 0, 1, 0.5, 0, 0, 1, 0.5, 0, 0, 1, 0.5, 0, 0};
  EXPECT_EQ(latents, expected);
}

TEST(LossMask, IsCroppedAndFlippedAsThePictureWas) {
  const Image mask = make_mask(32, 64, [](int64_t, int64_t x) { return x >= 16 && x < 24; });
  const TransformedImage picture{.original_size = {32, 64}, .framing = square_framing({32, 64}, 32), .crop_left = 16};
  std::vector<float> latents(16);
  write_loss_mask(mask, picture, 8, latents);
  for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(latents[i], i % 4 == 0 ? 1.0F : 0.0F);
  TransformedImage flipped = picture;
  flipped.flipped = true;
  write_loss_mask(mask, flipped, 8, latents);
  for (int64_t i = 0; i < 16; ++i) EXPECT_EQ(latents[i], i % 4 == 3 ? 1.0F : 0.0F);
}

TEST(LossMask, LiesOnThePictureThatSdxlFlipsBeforeItCrops) {
  // The picture is its own mask: wherever it is cropped, the two must agree.
  const Image mask = make_mask(32, 64, [](int64_t, int64_t x) { return x >= 16 && x < 24; });
  const TransformOptions options{.resolution = 32, .random_flip = true, .flip_before_crop = true};
  int64_t flips = 0, seen = 0;
  for (uint64_t slot = 0; slot < 40; ++slot) {
    at::Tensor pixel_values = at::empty({3, 32, 32}, at::kFloat);
    const TransformedImage picture = transform_image(mask, options, 5, slot, false, pixel_values);
    std::vector<float> latents(16);
    write_loss_mask(mask, picture, 8, latents);
    const at::Tensor expected = ((pixel_values[0] + 1) / 2).reshape({4, 8, 4, 8}).mean({1, 3});
    EXPECT_LT((at::tensor(latents).reshape({4, 4}) - expected).abs().max().item<float>(), 1e-6F) << slot;
    flips += picture.flipped;
    seen += expected.sum().item<float>() > 0;
  }
  EXPECT_TRUE(0 < flips && flips < 40 && seen > 10);
}

TEST(LossMask, LiesOnAPictureThatIsCroppedToABucket) {
  const Image mask = make_mask(30, 70, [](int64_t, int64_t x) { return x >= 20 && x < 50; });
  const Framing framing{.resized = {30, 70}, .cropped = {24, 56}};  // not resized: box and lanczos would differ
  int64_t flips = 0;
  for (uint64_t slot = 0; slot < 20; ++slot) {
    const TransformedImage picture = plan_transform({30, 70}, framing, {.random_flip = true}, 5, slot, false);
    at::Tensor pixel_values = at::empty({3, 24, 56}, at::kFloat);
    apply_transform(mask, Interpolation::lanczos, picture, pixel_values);
    std::vector<float> latents(3 * 7);
    write_loss_mask(mask, picture, 8, latents);
    const at::Tensor expected = ((pixel_values[0] + 1) / 2).reshape({3, 8, 7, 8}).mean({1, 3});
    EXPECT_LT((at::tensor(latents).reshape({3, 7}) - expected).abs().max().item<float>(), 1e-6F) << slot;
    flips += picture.flipped;
  }
  EXPECT_TRUE(0 < flips && flips < 20);
}

TEST(LossMask, AlphaIsReadFromTheFile) {
  const Image opaque = make_mask(4, 4, [](int64_t, int64_t x) { return x > 1; });
  EXPECT_TRUE(decode_alpha(encode_png(opaque), "opaque.png").rgb.empty());
}

}  // namespace
}  // namespace lorashard
