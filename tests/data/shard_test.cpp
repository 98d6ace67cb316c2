#include "data/shard.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <thread>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

#ifdef __SANITIZE_ADDRESS__
/// HDF5 1.10.8 loses some of its own memory when it refuses a damaged file.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5"; }
#endif

namespace lorashard {
namespace {

using testing::HasSubstr;

bool long_tests() {
  const char* value = std::getenv("LORASHARD_LONG_TESTS");
  return value != nullptr && std::string(value) == "1";
}

std::vector<ShardSample> make_samples(int count, size_t image_bytes) {
  std::mt19937_64 random(5);
  std::vector<ShardSample> samples;
  for (int i = 0; i < count; ++i) {
    ShardSample sample{fmt::format("folder/picture {}.png", i),
                       fmt::format("caption {} \xc3\xa4\xe2\x82\xac", i),
                       {10 + i, 20 + i},
                       {}};
    if (i % 5 == 3) sample.caption.clear();
    for (size_t k = 0; k < image_bytes + static_cast<size_t>(i); ++k)
      sample.image_bytes.push_back(static_cast<uint8_t>(random()));
    samples.push_back(std::move(sample));
  }
  return samples;
}

bool same(const ShardReader& reader, const std::vector<ShardSample>& samples) {
  if (reader.num_samples() != static_cast<int64_t>(samples.size())) return false;
  for (int64_t i = 0; i < reader.num_samples(); ++i) {
    const ShardSample& sample = samples[static_cast<size_t>(i)];
    if (reader.file_name(i) != sample.file_name || reader.caption(i) != sample.caption ||
        reader.size(i).height != sample.size.height || reader.size(i).width != sample.size.width ||
        reader.read_image(i) != sample.image_bytes)
      return false;
  }
  return true;
}

void write_bytes(const std::filesystem::path& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

enum class Outcome { refused, same, wrong };

/// What comes of reading a file that was tampered with. Any other exception, and any crash, fails the test.
Outcome outcome_of(const std::filesystem::path& path, const std::vector<ShardSample>& samples) {
  try {
    return same(ShardReader(path), samples) ? Outcome::same : Outcome::wrong;
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
    EXPECT_THAT(error.message(), HasSubstr(path.string()));
    return Outcome::refused;
  }
}

TEST(Shard, GivesBackWhatWasWritten) {
  const TempDir folder;
  for (const int count : {1, 2, 50, 9000}) {  // 9000: more than one chunk of the index
    const auto samples = make_samples(count, 40);
    write_shard(folder / "a.h5", samples);
    EXPECT_TRUE(same(ShardReader(folder / "a.h5"), samples)) << count;
  }
}

TEST(Shard, HoldsSamplesWithoutAnyCaption) {
  const TempDir folder;
  auto samples = make_samples(4, 40);
  for (ShardSample& sample : samples) sample.caption.clear();
  write_shard(folder / "a.h5", samples);
  EXPECT_TRUE(same(ShardReader(folder / "a.h5"), samples));
}

TEST(Shard, BytesDependOnTheSamplesAlone) {
  const TempDir folder;
  const auto samples = make_samples(30, 500);
  write_shard(folder / "a.h5", samples);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // a time stamp would have another second
  std::filesystem::create_directory(folder / "elsewhere");
  write_shard(folder / "elsewhere/b.h5", samples);
  EXPECT_EQ(read_file(folder / "a.h5"), read_file(folder / "elsewhere/b.h5"));
}

TEST(Shard, CostsLittleMoreThanItsPictures) {
  const TempDir folder;
  const auto samples = make_samples(200, 45'000);
  uint64_t bytes = 0;
  for (const ShardSample& sample : samples) bytes += sample.image_bytes.size();
  write_shard(folder / "a.h5", samples);
  EXPECT_LT(static_cast<double>(std::filesystem::file_size(folder / "a.h5")), 1.005 * static_cast<double>(bytes));
}

TEST(Shard, ManyThreadsReadAtOnce) {
  const TempDir folder;
  const auto samples = make_samples(64, 3000);
  write_shard(folder / "a.h5", samples);
  const ShardReader reader(folder / "a.h5");
  std::atomic<int> right = 0;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t)
    threads.emplace_back([&, t] {
      for (int64_t k = 0; k < 640; ++k) {
        const int64_t i = (k * 37 + t * 11) % 64;
        right += reader.read_image(i) == samples[static_cast<size_t>(i)].image_bytes;
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(right, 8 * 640);
}

TEST(Shard, NoFlippedBitPassesUnnoticed) {
  const TempDir folder;
  const auto samples = make_samples(12, 300);
  write_shard(folder / "good.h5", samples);
  const std::string good = read_file(folder / "good.h5");
  const int flips = long_tests() ? 1000 : 200;
  std::mt19937_64 random(2024);
  int refused = 0, harmless = 0;
  for (int i = 0; i < flips; ++i) {
    // Every second one in the first 4 KiB, where most of HDF5's own structures are.
    const size_t at = random() % (i % 2 == 0 ? good.size() : std::min<size_t>(good.size(), 4096));
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ (1 << (random() % 8)));
    write_bytes(folder / "bad.h5", bad);
    const Outcome outcome = outcome_of(folder / "bad.h5", samples);
    EXPECT_NE(outcome, Outcome::wrong) << "bit flipped in byte " << at;
    refused += outcome == Outcome::refused;
    harmless += outcome == Outcome::same;
  }
  std::printf("%d bits flipped in %zu bytes: %d refused, %d in bytes that hold nothing\n", flips, good.size(), refused,
              harmless);
  EXPECT_GT(refused, flips / 2);
}

TEST(Shard, EveryTruncationIsRefused) {
  const TempDir folder;
  const auto samples = make_samples(12, 300);
  write_shard(folder / "good.h5", samples);
  const std::string good = read_file(folder / "good.h5");
  const size_t step = long_tests() ? 1 : good.size() / 150;
  int count = 0;
  for (size_t length = 0; length < good.size(); length += step, ++count) {
    write_bytes(folder / "bad.h5", good.substr(0, length));
    EXPECT_EQ(outcome_of(folder / "bad.h5", samples), Outcome::refused) << length << " of " << good.size();
  }
  write_bytes(folder / "bad.h5", good.substr(0, good.size() - 1));
  EXPECT_EQ(outcome_of(folder / "bad.h5", samples), Outcome::refused);
  std::printf("%d truncations of %zu bytes\n", count + 1, good.size());
}

TEST(Shard, NamesShardAndSampleOfADamagedPicture) {
  const TempDir folder;
  const auto samples = make_samples(5, 300);
  write_shard(folder / "a.h5", samples);
  std::string bytes = read_file(folder / "a.h5");
  const size_t at = bytes.find(std::string(samples[3].image_bytes.begin(), samples[3].image_bytes.end()));
  ASSERT_NE(at, std::string::npos);
  bytes[at + 100] ^= 4;
  write_bytes(folder / "a.h5", bytes);
  const ShardReader reader(folder / "a.h5");
  EXPECT_EQ(reader.read_image(2), samples[2].image_bytes);
  try {
    reader.read_image(3);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.message(), HasSubstr((folder / "a.h5").string()));
    EXPECT_THAT(error.message(), HasSubstr("sample 3 ('folder/picture 3.png')"));
  }
}

TEST(Shard, FileCutWhileOpenIsAnErrorNotACrash) {
  const TempDir folder;
  const auto samples = make_samples(5, 3000);
  write_shard(folder / "a.h5", samples);
  const ShardReader reader(folder / "a.h5");
  std::filesystem::resize_file(folder / "a.h5", std::filesystem::file_size(folder / "a.h5") - 1000);
  try {
    reader.read_image(4);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr("cut short"));
  }
}

/// Another shard under the name of one that is being read: by a rename the reader keeps the file it has opened; written over it,
/// its bytes don't have the checksums that were read.
TEST(Shard, AnotherShardInItsPlaceIsNeverReadAsIt) {
  const TempDir folder;
  const auto samples = make_samples(5, 3000);
  auto others = samples;
  for (auto& sample : others) sample.image_bytes[7] ^= 1;
  write_shard(folder / "a.h5", samples);
  write_shard(folder / "b.h5", others);
  const ShardReader reader(folder / "a.h5");
  std::filesystem::rename(folder / "b.h5", folder / "a.h5");
  for (int64_t i = 0; i < 5; ++i) EXPECT_EQ(reader.read_image(i), samples[static_cast<size_t>(i)].image_bytes);

  write_shard(folder / "c.h5", samples);
  const ShardReader second(folder / "c.h5");
  write_bytes(folder / "c.h5", read_file(folder / "a.h5"));
  for (int64_t i = 0; i < 5; ++i) {
    try {
      second.read_image(i);
      ADD_FAILURE() << "sample " << i << " was read from another shard";
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::bad_data);
      EXPECT_THAT(error.message(), HasSubstr(fmt::format("sample {} (", i)));
    }
  }
}

TEST(Shard, MissingFileIsWrongUse) {
  const TempDir folder;
  try {
    const ShardReader reader(folder / "none.h5");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
  }
}

/// In a process of its own: writes a shard where files may not grow beyond `limit`, and ends with the error's exit
/// code.
[[noreturn]] void write_with_limit(const std::filesystem::path& folder, uint64_t limit) {
  std::signal(SIGXFSZ, SIG_IGN);
  const rlimit size = {limit, limit};
  setrlimit(RLIMIT_FSIZE, &size);
  int code = 0;
  try {
    write_shard(folder / "a.h5", make_samples(20, 5000));
  } catch (const Error& error) {
    code = exit_code(error.kind());
  }
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    (void)entry;
    code = 1;  // something was left behind
  }
  std::_Exit(code);
}

TEST(Shard, AFullDiskIsAnIoErrorAndLeavesNothing) {
  testing::FLAGS_gtest_death_test_style = "threadsafe";
  for (const uint64_t limit : {100, 3000, 20'000, 60'000}) {
    const TempDir folder;
    EXPECT_EXIT(write_with_limit(folder.path(), limit), testing::ExitedWithCode(exit_code(ErrorKind::io)), "")
        << "at " << limit << " bytes";
  }
}

}  // namespace
}  // namespace lorashard
