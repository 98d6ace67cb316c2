#include "data/png_text.h"

#include <gtest/gtest.h>

#include "data/image.h"
#include "data/image_write.h"

namespace lorashard {
namespace {

Image grey(int64_t side) { return {side, side, std::vector<uint8_t>(static_cast<size_t>(side * side * 3), 128)}; }

TEST(PngText, IsFoundUnderItsKeywordAndLeavesThePixels) {
  auto png = encode_png(grey(5));
  png = add_png_text(png, "parameters", "a house\nSteps: 20");
  png = add_png_text(png, "lorashard", "{}");
  EXPECT_EQ(png_text(png, "parameters"), "a house\nSteps: 20");
  EXPECT_EQ(png_text(png, "lorashard"), "{}");
  EXPECT_EQ(png_text(png, "param"), "");
  EXPECT_EQ(decode_image(png, "with text").rgb, grey(5).rgb);
}

TEST(PngText, KeepsWhatIsNotAscii) {
  const auto png = add_png_text(encode_png(grey(3)), "parameters", "ein Häuschen 家");
  EXPECT_EQ(png_text(png, "parameters"), "ein Häuschen 家");
  EXPECT_EQ(decode_image(png, "with text").rgb, grey(3).rgb);
}

TEST(PngText, OfACutFileIsEmpty) {
  auto png = add_png_text(encode_png(grey(3)), "parameters", "a house");
  png.resize(40);
  EXPECT_EQ(png_text(png, "parameters"), "");
}

}  // namespace
}  // namespace lorashard
