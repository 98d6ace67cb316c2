#include "trainer/sample_grid.h"

#include <gtest/gtest.h>

namespace lorashard {
namespace {

Image filled(int64_t height, int64_t width, uint8_t value) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3), value)};
}

SampleGrid grid_of(std::vector<SampleRow> rows) {
  return {.title = "Step 5 of 10", .origin = "run on 'base'", .settings = {"DDIM", "5 steps"}, .rows = std::move(rows)};
}

int64_t pixels_of(const Image& image, uint8_t value) {
  int64_t count = 0;
  for (size_t i = 0; i < image.rgb.size(); i += 3)
    count += image.rgb[i] == value && image.rgb[i + 1] == value && image.rgb[i + 2] == value;
  return count;
}

TEST(SampleGrid, ShowsEveryPictureEnlargedWhereItIsSmall) {
  const Image sheet =
      draw_sample_grid(grid_of({{"one", {filled(64, 64, 100), filled(64, 64, 110)}, {"#0", "#1"}},
                                {"two", {filled(64, 64, 120), filled(64, 64, 130)}, {"#0", "#1"}}}));
  for (const uint8_t value : {100, 110, 120, 130}) EXPECT_GE(pixels_of(sheet, value), (kLeastTile - 2) * (kLeastTile - 2));
}

TEST(SampleGrid, MakesLargePicturesSmallerAndKeepsTheirShape) {
  const Image sheet = draw_sample_grid(grid_of({{"one", {filled(512, 1024, 100)}, {"#0"}}}));
  const int64_t shown = pixels_of(sheet, 100);
  EXPECT_GE(shown, (kMostTile - 2) * (kMostTile / 2 - 2));
  EXPECT_LE(shown, (kMostTile + 2) * (kMostTile / 2 + 2));
}

TEST(SampleGrid, ALongRowGoesOnBelow) {
  const std::vector<Image> pictures(9, filled(64, 64, 100));
  const Image sheet = draw_sample_grid(grid_of({{"many", pictures, {}}}));
  EXPECT_GE(pixels_of(sheet, 100), 9 * (kLeastTile - 2) * (kLeastTile - 2));
  EXPECT_LT(sheet.width, 5 * kLeastTile);
}

TEST(SampleGrid, HoldsAnyPrompt) {
  const std::string hostile = "<script> & \"quotes\" \x01 " + std::string(3000, 'x') + " 家";
  const Image plain = draw_sample_grid(grid_of({{"a", {filled(64, 64, 100)}, {}}}));
  const Image sheet = draw_sample_grid(grid_of({{hostile, {filled(64, 64, 100)}, {hostile}}}));
  EXPECT_EQ(sheet.width, plain.width);
  EXPECT_LT(sheet.height, 2 * plain.height);
}

}  // namespace
}  // namespace lorashard
