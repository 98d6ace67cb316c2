// What the oracle (tests/oracle/test_image_decode.py) can't ask from outside: limits, errors, threads.
#include "data/image.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "data/image_write.h"
#include "dist/error.h"

#ifdef __SANITIZE_THREAD__
/// These libraries are built without the sanitizer, which doesn't see GLib's futexes.
extern "C" const char* __tsan_default_suppressions() {
  return "called_from_lib:libglib-2.0\n"
         "called_from_lib:libgobject-2.0\n"
         "called_from_lib:libvips\n"
         "called_from_lib:libpng16\n"
         "called_from_lib:libz.so\n";
}
#endif

namespace lorashard {
namespace {

using testing::HasSubstr;

Image make_image(int64_t height, int64_t width, int seed) {
  Image image{height, width, {}};
  for (int64_t i = 0; i < height * width * 3; ++i)
    image.rgb.push_back(static_cast<uint8_t>((i * 7919 + seed * 104729) >> 3));
  return image;
}

/// The Error that decoding throws; fails when there is none.
Error decode_error(std::span<const uint8_t> bytes, const DecodeLimits& limits = {}) {
  try {
    decode_image(bytes, "bird.png", limits);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "decoded without an error";
  return Error(ErrorKind::internal, "");
}

TEST(DecodeImage, GivesBackThePixelsOfAPng) {
  const Image image = make_image(33, 47, 1);
  const Image decoded = decode_image(encode_png(image), "bird.png");
  EXPECT_EQ(decoded.height, 33);
  EXPECT_EQ(decoded.width, 47);
  EXPECT_EQ(decoded.rgb, image.rgb);
}

TEST(DecodeImage, NamesTheFileAndTheReason) {
  auto bytes = encode_png(make_image(20, 20, 1));
  bytes.resize(bytes.size() / 2);
  const Error error = decode_error(bytes);
  EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  EXPECT_THAT(error.message(), HasSubstr("'bird.png'"));
  EXPECT_THAT(error.message(), HasSubstr("read error"));
  EXPECT_THAT(error.hint(), HasSubstr("damaged"));
}

TEST(DecodeImage, RefusesWhatIsNoPicture) {
  EXPECT_THAT(decode_error({}).message(), HasSubstr("an empty one"));
  const std::string svg = "<svg xmlns='http://www.w3.org/2000/svg'/>";
  const Error error = decode_error({reinterpret_cast<const uint8_t*>(svg.data()), svg.size()});
  EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  EXPECT_THAT(error.message(), HasSubstr("expected a PNG, JPEG or WebP file"));
}

TEST(DecodeImage, HoldsItsLimitsExactly) {
  const auto bytes = encode_png(make_image(20, 30, 1));
  EXPECT_EQ(decode_image(bytes, "bird.png", {.max_pixels = 600, .max_side = 30}).width, 30);
  EXPECT_THAT(decode_error(bytes, {.max_pixels = 599}).message(), HasSubstr("30 x 20"));
  EXPECT_THAT(decode_error(bytes, {.max_side = 29}).message(), HasSubstr("30 x 20"));
}

TEST(DecodeImage, ThreadsGetTheirOwnPixelsAndTheirOwnErrors) {
  constexpr int kThreads = 8, kRounds = 20;
  std::atomic<int> right = 0, refused = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Image image = make_image(40 + t, 50, t);
      const auto whole = encode_png(image);
      auto cut = whole;
      cut.resize(cut.size() - 40);
      auto no_header = whole;
      no_header[17] ^= 1;
      for (int round = 0; round < kRounds; ++round) {
        right += decode_image(whole, "whole").rgb == image.rgb;
        try {
          decode_image(t % 2 == 0 ? cut : no_header, "cut");
        } catch (const Error& error) {
          // The texts of the decoder are kept for the whole process: none of another thread may show up here.
          const bool about_header = std::string(error.what()).find("IHDR") != std::string::npos;
          refused += error.kind() == ErrorKind::bad_data && about_header == (t % 2 == 1);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, kThreads * kRounds);
  EXPECT_EQ(refused, kThreads * kRounds);
}

}  // namespace
}  // namespace lorashard
