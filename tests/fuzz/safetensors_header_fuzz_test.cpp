// Run by test_safetensors_header.py too, which gives what was accepted here to the reference package.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "dist/error.h"
#include "models/safetensors_header.h"
#include "tests/fuzz/fuzz.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

// Pieces of JSON and of the format that a byte flip would rarely make.
const std::string kTokens[] = {"\"", "{", "}", "[", "]", ",", ":", "\\", "\\u0000", "\\ud800", std::string(1, '\0'), " ", "\n", "0", "-0",
                               "1e1", "1.0", "18446744073709551615", "18446744073709551616", "9223372036854775808", "4294967296", "null",
                               "true", "NaN", "\"__metadata__\":", "\"dtype\":", "\"shape\":", "\"data_offsets\":", "\"F32\"", "\"F4\"",
                               "\"BOOL\"", "\xff", "\xc3\xa9", "\xef\xbb\xbf", "// x\n", "/* */"};

const std::string kHeader =
    R"({"__metadata__":{"format":"pt"},"flag":{"dtype":"BOOL","shape":[2],"data_offsets":[60,62]},)"
    R"("ids":{"dtype":"I64","shape":[3],"data_offsets":[0,24]},"scalar":{"dtype":"F32","shape":[],"data_offsets":[24,28]},)"
    R"("empty":{"dtype":"F32","shape":[0,3],"data_offsets":[28,28]},)"
    R"("unet.to_q.lora.down.weight":{"dtype":"F32","shape":[2,4],"data_offsets":[28,60]}})";
constexpr size_t kDataBytes = 62;

std::string file_bytes(uint64_t length, const std::string& header, size_t data_bytes) {
  return std::string(reinterpret_cast<const char*>(&length), 8) + header + std::string(data_bytes, '\0');
}

bool is_accepted(const std::string& file) {
  try {
    parse_safetensors_header(file, "x");
    return true;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr("reading safetensors 'x': "));
    return false;
  }
}

TEST(FuzzSafetensorsHeader, MutatedHeadersAreRefusedOrReadWhole) {
  const int trials = fuzz_count(100'000, 2'000'000);
  std::mt19937_64 random(7);
  const char* accepted_path = std::getenv("LORASHARD_FUZZ_ACCEPTED");
  std::ofstream corpus;
  if (accepted_path != nullptr) corpus.open(accepted_path, std::ios::binary);
  const auto keep = [&](const std::string& file) {
    const uint64_t size = file.size();
    if (accepted_path != nullptr) corpus.write(reinterpret_cast<const char*>(&size), 8) << file;
  };
  ASSERT_TRUE(is_accepted(file_bytes(kHeader.size(), kHeader, kDataBytes)));
  int accepted = 0;
  for (int i = 0; i < trials; ++i) {
    const std::string header = mutated(kHeader, kTokens, random);
    const uint64_t lengths[] = {0, header.size() - 1, header.size() + 1, uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7};
    const std::string file = file_bytes(random() % 32 == 0 ? lengths[random() % std::size(lengths)] : header.size(), header,
                                        random() % 16 == 0 ? random() % (kDataBytes + 3) : kDataBytes);
    if (!is_accepted(file)) continue;
    ++accepted;
    keep(file);
  }
  std::printf("safetensors: %d mutated headers: %d accepted\n", trials, accepted);
  EXPECT_GT(accepted, trials / 100) << "harmless changes exist: a reader that refuses everything would prove nothing";
  EXPECT_LT(accepted, trials / 2);
  EXPECT_TRUE(accepted_path == nullptr || corpus.flush());
}

}  // namespace
}  // namespace lorashard
