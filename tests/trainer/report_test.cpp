#include "trainer/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <limits>

#include "data/image_write.h"
#include "data/pack.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

const double kNaN = std::numeric_limits<double>::quiet_NaN();

void write(const std::filesystem::path& path, const std::string& text) { std::ofstream(path) << text; }

void write_picture(const std::filesystem::path& path, const std::vector<uint8_t>& colour) {
  Image image{40, 40, {}};
  for (int i = 0; i < 1600; ++i) image.rgb.insert(image.rgb.end(), colour.begin(), colour.end());
  const auto png = encode_png(image);
  std::ofstream(path, std::ios::binary)
      .write(reinterpret_cast<const char*>(png.data()), static_cast<std::streamsize>(png.size()));
}

/// A run directory of `num_steps` steps on a pack of one plain picture.
void make_run(const std::filesystem::path& folder, int num_steps) {
  std::filesystem::create_directories(folder / "source");
  write_picture(folder / "source/a.png", {30, 160, 90});
  write(folder / "source/metadata.jsonl", R"({"file_name": "a.png", "text": "something <green> & plain"})");
  pack_images(folder / "source", folder / "data", {});
  std::filesystem::create_directories(folder / "pokemon");
  write(folder / "pokemon/recipe.toml",
        fmt::format("output_dir = \"{0}/pokemon\"\n[model]\npretrained_model_name_or_path = \"/models/tiny\"\n"
                    "[data]\ntrain_data_dir = \"{0}/data\"\nresolution = 32\n"
                    "[train]\ntotal_batch_size = 2\nmax_train_steps = {1}\n",
                    folder.string(), num_steps));
  std::string metrics;
  for (int k = 1; k <= num_steps; ++k) {
    metrics +=
        fmt::format("{{\"global_step\": {}, \"loss\": {}, \"lr\": 1e-4, \"images_per_second\": 4, \"wall_s\": {}}}\n",
                    k, 1.0 / k, 0.5 * k);
  }
  write(folder / "pokemon/metrics.jsonl", metrics);
}

bool is_pixel(const Image& image, double x, double y, const std::vector<uint8_t>& colour) {
  const auto row = static_cast<int64_t>(y * 1.5), column = static_cast<int64_t>(x * 1.5);
  return std::equal(colour.begin(), colour.end(), &image.rgb[(row * image.width + column) * 3]);
}

Image read_png(const std::filesystem::path& path) {
  const std::string bytes = read_file(path);
  return decode_image({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}, path.string());
}

TEST(Report, ALineCutWhileItWasWrittenIsLeftOut) {
  const TempDir folder;
  write(folder / "metrics.jsonl", "{\"global_step\": 1, \"loss\": 0.5, \"skipped\": true}\n{\"global_step\": 2, \"lo");
  const auto steps = read_metrics(folder / "metrics.jsonl");
  ASSERT_EQ(steps.size(), 1);
  EXPECT_EQ(steps[0].loss, 0.5);
  EXPECT_TRUE(steps[0].skipped);
  EXPECT_TRUE(std::isnan(steps[0].lr));
}

TEST(Report, AnyOtherBrokenLineIsAnErrorThatSaysWhere) {
  const TempDir folder;
  write(folder / "metrics.jsonl", "{\"global_step\": 1, \"loss\": null}\nnonsense\n{\"global_step\": 3}\n");
  try {
    read_metrics(folder / "metrics.jsonl");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.what(), HasSubstr("metrics.jsonl' line 2"));
  }
}

TEST(Report, TheRunningMeanLeavesNaNOut) {
  EXPECT_THAT(running_mean({1, 3, 5, 7}, 2), ElementsAre(1, 2, 4, 6));
  const auto means = running_mean({1, kNaN, kNaN, 4}, 2);
  EXPECT_EQ(means[1], 1);
  EXPECT_TRUE(std::isnan(means[2]));
  EXPECT_EQ(means[3], 4);
}

TEST(Report, TheSummaryAddsTheTimeOfEveryProcessGroup) {
  std::vector<RecordedStep> steps;
  for (int k = 1; k <= 40; ++k) {
    steps.push_back(
        {k, 1.0 + k, 1e-4, k == 1 ? 0.1 : 5.0, k <= 10 ? 2.0 * k : 1.0 * (k - 10), k == 7, k <= 10 ? 2 : 4});
  }
  const RunSummary summary = summarise("run", steps);
  EXPECT_EQ(summary.steps, 40);
  EXPECT_EQ(summary.wall_s, 20 + 30);
  EXPECT_EQ(summary.skipped_steps, 1);
  EXPECT_EQ(summary.images_per_second, 5);
  EXPECT_EQ(summary.min_ranks, 2);
  EXPECT_EQ(summary.max_ranks, 4);
  EXPECT_EQ(summary.smoothing_steps, 4);
  EXPECT_EQ(summary.last_loss, 41);
  EXPECT_EQ(summary.final_loss, 39.5);
}

TEST(Report, HoldsThePictureTheCaptionAndTheCurve) {
  const TempDir folder;
  make_run(folder.path(), 10);
  const RunSummary summary = write_report(folder / "pokemon", folder / "pokemon/report.png");
  EXPECT_EQ(summary.name, "pokemon");
  EXPECT_EQ(summary.num_samples, 1);
  EXPECT_EQ(summary.last_loss, 0.1);
  const Image report = read_png(folder / "pokemon/report.png");
  EXPECT_EQ(report.width, kFigureWidth * 3 / 2);
  EXPECT_EQ(report.height, kFigureHeight * 3 / 2);
  EXPECT_TRUE(is_pixel(report, 100, 200, {30, 160, 90})) << "the picture";
  EXPECT_TRUE(is_pixel(report, 600, 400, {255, 255, 255})) << "between the pictures and the curves";
  int curve = 0;
  for (int x = 652; x < 1164; ++x) {
    bool found = false;
    for (int y = 130; y < 512; ++y) found |= is_pixel(report, x, y, {0x1c, 0x5f, 0xb0});
    curve += found;
  }
  EXPECT_GT(curve, 400) << "columns of pixels the curve passes";
}

TEST(Report, TheDrawingNamesTheRunAndEscapesItsCaptions) {
  const std::vector<RecordedStep> steps = {{1, 0.5, 1e-4, 3, 1, false, 0}, {2, 0.4, 1e-4, 3, 2, true, 0}};
  RunSummary summary = summarise("my <run>", steps);
  summary.max_train_steps = 5;
  const std::string svg = draw_report(summary, steps, {{{2, 2, std::vector<uint8_t>(12, 9)}, "a <b> & c"}}, "");
  for (const char* part : {"my &lt;run&gt;", "step 2 of 5", "3 images/s", "1 skipped", "a &lt;b&gt; &amp; c",
                           "optimizer step", "Learning rate"}) {
    EXPECT_THAT(svg, HasSubstr(part));
  }
  EXPECT_THAT(svg, Not(HasSubstr("nan")));
  EXPECT_EQ(render_svg(svg).width, kFigureWidth);
}

TEST(Report, ARunOfOneStepOrWithoutAFiniteLossIsDrawnToo) {
  for (const double loss : {0.0, 0.25, kNaN}) {
    const std::vector<RecordedStep> steps = {{1, loss, kNaN, kNaN, kNaN, false, 0}};
    const std::string svg = draw_report(summarise("run", steps), steps, {}, "no pictures");
    EXPECT_THAT(svg, Not(HasSubstr("nan")));
    EXPECT_THAT(svg, Not(HasSubstr("inf")));
    EXPECT_EQ(render_svg(svg).height, kFigureHeight);
  }
}

TEST(Report, APackThatWasMovedAwayLeavesTheCurves) {
  const TempDir folder;
  make_run(folder.path(), 3);
  std::filesystem::rename(folder / "data", folder / "elsewhere");
  EXPECT_EQ(write_report(folder / "pokemon", folder / "out.png").num_samples, 0);
  EXPECT_FALSE(is_pixel(read_png(folder / "out.png"), 100, 200, {30, 160, 90}));
}

TEST(Report, AFolderThatIsNoRunIsWrongUse) {
  const TempDir folder;
  try {
    write_report(folder.path(), folder / "out.png");
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

}  // namespace
}  // namespace lorashard
