#include "data/image_write.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

using testing::ElementsAre;

std::vector<int> pixel(const Image& image, int64_t y, int64_t x) {
  const uint8_t* at = &image.rgb[(y * image.width + x) * 3];
  return {at[0], at[1], at[2]};
}

Image noisy(int64_t height, int64_t width) {
  Image image{height, width, {}};
  for (int64_t i = 0; i < height * width * 3; ++i) image.rgb.push_back(static_cast<uint8_t>(i * 37 + i / 7));
  return image;
}

TEST(ImageWrite, APngHoldsEveryPixel) {
  const Image image = noisy(13, 29);
  const Image read = decode_image(encode_png(image), "written.png");
  EXPECT_EQ(read.height, 13);
  EXPECT_EQ(read.width, 29);
  EXPECT_EQ(read.rgb, image.rgb);
}

TEST(ImageWrite, AnSvgIsDrawnOnWhiteAtItsScale) {
  const Image drawn = render_svg(
      "<svg xmlns='http://www.w3.org/2000/svg' width='20' height='10'><rect x='10' y='0' width='10' height='10' "
      "fill='#206080'/></svg>",
      3);
  EXPECT_EQ(drawn.height, 30);
  EXPECT_EQ(drawn.width, 60);
  EXPECT_THAT(pixel(drawn, 15, 15), ElementsAre(255, 255, 255));
  EXPECT_THAT(pixel(drawn, 15, 45), ElementsAre(0x20, 0x60, 0x80));
}

TEST(ImageWrite, AnSvgCanHoldPicturesAsDataAlsoAfterOneWasDecoded) {
  const Image image = noisy(8, 8);
  decode_image(encode_png(image), "written.png");  // decoding forbids the SVG loader, for files it doesn't know
  const Image drawn = render_svg(
      "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' width='8' height='8'>"
      "<image width='8' height='8' xlink:href='" +
      png_data_uri(image) + "'/></svg>");
  EXPECT_EQ(drawn.rgb, image.rgb);
}

TEST(ImageWrite, ABrokenSvgIsAnError) { EXPECT_THROW(render_svg("<svg"), Error); }

}  // namespace
}  // namespace lorashard
