#include "data/tensor_store.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <random>
#include <vector>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr int64_t kRows = 150, kRowBytes = 96;  // three shards, the last one short

std::vector<uint8_t> row(int64_t number) {
  std::mt19937_64 random(static_cast<uint64_t>(number));
  std::vector<uint8_t> bytes(kRowBytes);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  return bytes;
}

void write(const TensorStore& store, int64_t shard) {
  std::vector<uint8_t> rows;
  for (int64_t i = 0; i < store.rows_of(shard); ++i) {
    const std::vector<uint8_t> bytes = row(store.first_row(shard) + i);
    rows.insert(rows.end(), bytes.begin(), bytes.end());
  }
  store.write(shard, rows);
}

TensorStore make_store(const std::filesystem::path& folder, const std::string& identity = "of these pictures") {
  return {folder, identity, kRows, kRowBytes};
}

Error caught(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  return {ErrorKind::internal, "nothing was thrown"};
}

TEST(TensorStore, GivesBackEveryRowWhoeverMadeTheShards) {
  const TempDir temp;
  TensorStore store = make_store(temp.path());
  EXPECT_THAT(store.missing(), ElementsAre(0, 1, 2));
  for (const int64_t shard : {2, 0, 1}) write(make_store(temp.path()), shard);
  EXPECT_THAT(store.missing(), IsEmpty());
  store.open();
  for (int64_t i = 0; i < kRows; ++i) {
    std::vector<uint8_t> found(kRowBytes);
    store.read_row(i, found.data());
    ASSERT_EQ(found, row(i)) << i;
  }
}

TEST(TensorStore, AShardHasTheSameBytesEachTime) {
  const TempDir one, other;
  write(make_store(one.path()), 1);
  write(make_store(other.path()), 1);
  EXPECT_EQ(read_file(one.path() / "00001.h5"), read_file(other.path() / "00001.h5"));
}

TEST(TensorStore, MissesWhatIsAbsentDamagedOrOfSomethingElse) {
  const TempDir temp;
  const TensorStore store = make_store(temp.path());
  for (int64_t shard = 0; shard < store.num_shards(); ++shard) write(store, shard);
  EXPECT_THAT(make_store(temp.path(), "of other pictures").missing(), ElementsAre(0, 1, 2));
  std::filesystem::resize_file(temp.path() / "00001.h5", 100);
  EXPECT_THAT(store.missing(), ElementsAre(1));
  std::filesystem::remove(temp.path() / "00002.h5");
  EXPECT_THAT(store.missing(), ElementsAre(1, 2));
}

TEST(TensorStore, NamesTheFileAndTheRowOfAFlippedBit) {
  const TempDir temp;
  TensorStore store = make_store(temp.path());
  for (int64_t shard = 0; shard < store.num_shards(); ++shard) write(store, shard);
  store.open();
  const std::filesystem::path path = temp.path() / "00001.h5";
  std::string bytes = read_file(path);
  const std::vector<uint8_t> wanted = row(TensorStore::kRowsPerShard + 7);
  const size_t place = bytes.find(std::string(wanted.begin(), wanted.end()));
  ASSERT_NE(place, std::string::npos);
  bytes[place + 5] ^= 4;
  std::fstream(path, std::ios::binary | std::ios::in | std::ios::out).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  std::vector<uint8_t> found(kRowBytes);
  const Error error = caught([&] { store.read_row(TensorStore::kRowsPerShard + 7, found.data()); });
  EXPECT_EQ(error.kind(), ErrorKind::bad_data);
  EXPECT_THAT(error.what(), HasSubstr("00001.h5': row 7: the checksum"));
  store.read_row(TensorStore::kRowsPerShard + 8, found.data());
  EXPECT_EQ(found, row(TensorStore::kRowsPerShard + 8));
}

}  // namespace
}  // namespace lorashard
