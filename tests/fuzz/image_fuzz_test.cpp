// Pictures come from test_image.py, which makes them: $LORASHARD_FUZZ_IMAGES/seeds and /bombs. The decoders themselves (libpng, libjpeg,
// libwebp, libvips) are Debian's and not instrumented: of them the sanitizer sees heap misuse in what they call, and crashes are seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "data/image.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/fuzz/fuzz.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

std::vector<fs::path> files_in(const char* kind) {
  const char* folder = std::getenv("LORASHARD_FUZZ_IMAGES");
  if (folder == nullptr) return {};
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(fs::path(folder) / kind)) files.push_back(entry.path());
  std::sort(files.begin(), files.end());
  return files;
}

std::span<const uint8_t> as_bytes(const std::string& text) { return {reinterpret_cast<const uint8_t*>(text.data()), text.size()}; }

/// Whether it is a picture within the limits; an Error(bad_data) naming it says no, anything else fails the test.
bool is_decoded(const std::string& file, const DecodeLimits& limits) {
  try {
    const Image image = decode_image(as_bytes(file), "bird.png", limits);
    EXPECT_LE(image.height * image.width, limits.max_pixels);
    EXPECT_EQ(image.rgb.size(), static_cast<size_t>(image.height * image.width) * 3);
    const Image alpha = decode_alpha(as_bytes(file), "bird.png", limits);
    EXPECT_TRUE(alpha.rgb.empty() || alpha.rgb.size() == image.rgb.size());
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
    EXPECT_THAT(error.message(), HasSubstr("'bird.png'"));
    return false;
  }
}

TEST(FuzzImage, MutatedPicturesAreDecodedOrRefused) {
  const std::string tokens[] = {std::string(4, '\0'), std::string(4, '\xff'), std::string("\x7f\xff\xff\xff", 4), "IHDR", "IDAT", "PLTE", "tRNS",
                                "iCCP", "acTL", "\xff\xd8", "\xff\xda", "\xff\xc2", "\xff\xc4", "\xff\xdd", "\xff\xe1", "Exif", "RIFF", "VP8 ",
                                "VP8L", "VP8X", "ALPH", "ANIM", std::string(64, '\x80')};
  const std::vector<fs::path> seeds = files_in("seeds");
  if (seeds.empty()) GTEST_SKIP() << "run test_image.py";
  std::vector<std::string> files;
  for (const fs::path& path : seeds) {
    files.push_back(read_file(path));
    ASSERT_TRUE(is_decoded(files.back(), {})) << path;
  }
  const int trials = fuzz_count(6000, 100'000);
  std::mt19937_64 random(2025);
  int decoded = 0;
  const int64_t before = start_watching_memory();
  for (int i = 0; i < trials; ++i) {
    const std::string& file = files[static_cast<size_t>(i) % files.size()];
    // Half of the time only in the first 200 bytes, where the headers are.
    const size_t head = i % 4 < 2 ? std::min<size_t>(file.size(), 200) : file.size();
    decoded += is_decoded(mutated(file.substr(0, head), tokens, random) + file.substr(head), {});
  }
  const int64_t growth = most_memory() - before;
  std::printf("images: %d mutated out of %zu pictures: %d decoded, %d refused; at most %ld MB more memory\n", trials, files.size(), decoded,
              trials - decoded, growth);
  EXPECT_GT(decoded, 0);
  EXPECT_GT(trials - decoded, trials / 4);
  EXPECT_LT(growth, 500) << "the limits allow 64 M pixels of three bytes";
}

TEST(FuzzImage, BombsAreRefusedBeforeTheyAreUnpacked) {
  const std::vector<fs::path> bombs = files_in("bombs");
  if (bombs.empty()) GTEST_SKIP() << "run test_image.py";
  ASSERT_GE(bombs.size(), 8u);
  for (const fs::path& path : bombs) {
    const std::string file = read_file(path);
    const int64_t before = start_watching_memory();
    const bool decoded = is_decoded(file, {});
    const int64_t growth = most_memory() - before;
    std::printf("images: bomb %s (%zu bytes): %s, %ld MB more memory\n", path.filename().c_str(), file.size(),
                decoded ? "decoded" : "refused", growth);
    // The bound is memory: the unpacked pictures are 196 MB and more. How long it takes depends on the machine. Names that begin with "small": within the limits, where the excess is elsewhere; such a file may be read, at a small cost.
    EXPECT_TRUE(!decoded || path.filename().string().starts_with("small")) << path;
    EXPECT_LT(growth, 150) << path;
  }
}

TEST(FuzzImage, OtherFormatsReachNoDecoder) {
  const std::vector<fs::path> others = files_in("others");
  if (others.empty()) GTEST_SKIP() << "run test_image.py";
  for (const fs::path& path : others) {
    const std::string file = read_file(path);
    try {
      decode_image(as_bytes(file), "bird.png");
      ADD_FAILURE() << path << " was decoded";
    } catch (const Error& error) {
      EXPECT_THAT(error.message(), HasSubstr("expected a PNG, JPEG or WebP file")) << path;
    }
  }
  std::printf("images: %zu files of other formats: all refused by their first bytes\n", others.size());
}

}  // namespace
}  // namespace lorashard
