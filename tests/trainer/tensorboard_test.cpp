#include "trainer/tensorboard.h"

#include <gtest/gtest.h>

#include <fstream>
#include <string>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

uint64_t little_endian(const std::string& bytes, size_t at, size_t size) {
  uint64_t value = 0;
  for (size_t i = 0; i < size; ++i) value |= uint64_t(static_cast<unsigned char>(bytes.at(at + i))) << (8 * i);
  return value;
}

/// Bit by bit, from the polynomial, unlike the table in the writer.
uint32_t masked_crc32c(const std::string& bytes) {
  uint32_t crc = ~0u;
  for (char c : bytes) {
    crc ^= static_cast<unsigned char>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78u : crc >> 1;
  }
  crc = ~crc;
  return ((crc >> 15) | (crc << 17)) + 0xA282EAD8u;
}

TEST(EventFile, RecordsAreFramedWithTheirLengthAndMaskedChecksums) {
  ASSERT_EQ(masked_crc32c("123456789"), ((0xE3069283u >> 15) | (0xE3069283u << 17)) + 0xA282EAD8u);
  TempDir folder;
  EventFile file(folder / "logs");
  file.scalar("train/loss", 1, 0.5);
  file.text("prompt", 2, std::string(1000, 'x'));
  file.flush();
  const std::string bytes = read_file(file.path());
  int records = 0;
  for (size_t at = 0; at < bytes.size(); ++records) {
    const size_t length = little_endian(bytes, at, 8);
    EXPECT_EQ(little_endian(bytes, at + 8, 4), masked_crc32c(bytes.substr(at, 8)));
    EXPECT_EQ(little_endian(bytes, at + 12 + length, 4), masked_crc32c(bytes.substr(at + 12, length)));
    at += length + 16;
  }
  EXPECT_EQ(records, 3);  // the version of the format comes first
}

TEST(EventFile, TwoInOneSecondHaveNamesOfTheirOwn) {
  TempDir folder;
  EventFile first(folder.path()), second(folder.path()), third(folder.path());
  EXPECT_NE(first.path(), second.path());
  EXPECT_NE(second.path(), third.path());
}

TEST(EventFile, AFolderThatCannotBeMadeIsAnIoErrorThatNamesIt) {
  TempDir folder;
  std::ofstream(folder / "file") << "not a folder";
  try {
    EventFile file(folder / "file/logs");
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::io);
    EXPECT_NE(error.message().find("file/logs'"), std::string::npos);
  }
}

}  // namespace
}  // namespace lorashard
