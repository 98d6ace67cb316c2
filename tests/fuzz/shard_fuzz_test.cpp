#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/shard.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

/// `with_extras`: masks, weights, repeats and several captions, which make it a shard of version 2.
std::vector<ShardSample> make_samples(bool with_extras) {
  std::mt19937_64 random(5);
  std::vector<ShardSample> samples;
  for (int i = 0; i < 12; ++i) {
    ShardSample sample{fmt::format("folder/picture {}.png", i), fmt::format("caption {} \xc3\xa4", i), {10 + i, 20 + i}, {}};
    for (int k = 0; k < 300 + i; ++k) sample.image_bytes.push_back(static_cast<uint8_t>(random()));
    if (with_extras && i % 3 == 0) {
      sample.more_captions = {"another", "a third"};
      sample.mask_bytes.assign(40, static_cast<uint8_t>(i));
      sample.weight = 0.5 + i;
      sample.repeats = 1 + i;
    }
    samples.push_back(std::move(sample));
  }
  return samples;
}

bool is_same(const ShardReader& reader, const std::vector<ShardSample>& samples) {
  if (reader.num_samples() != static_cast<int64_t>(samples.size())) return false;
  for (int64_t i = 0; i < reader.num_samples(); ++i) {
    const ShardSample& sample = samples[static_cast<size_t>(i)];
    std::vector<std::string> captions = {sample.caption};
    captions.insert(captions.end(), sample.more_captions.begin(), sample.more_captions.end());
    const auto found = reader.captions(i);
    if (reader.file_name(i) != sample.file_name || !std::equal(found.begin(), found.end(), captions.begin(), captions.end()) ||
        reader.size(i).height != sample.size.height || reader.size(i).width != sample.size.width ||
        reader.weight(i) != sample.weight || reader.repeats(i) != sample.repeats ||
        reader.read_image(i) != sample.image_bytes || reader.read_mask(i) != sample.mask_bytes)
      return false;
  }
  return true;
}

struct Counts {
  int refused = 0, same = 0, wrong = 0;
};

/// Reads all of the shard at `path`. An exception of another kind fails the test.
void count(const std::filesystem::path& path, const std::vector<ShardSample>& samples, Counts* counts) {
  try {
    ++(is_same(ShardReader(path), samples) ? counts->same : counts->wrong);
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
    EXPECT_THAT(error.message(), HasSubstr(path.string()));
    ++counts->refused;
  }
}

class FuzzShard : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    write_shard(folder_ / "good.h5", samples_);
    good_ = read_file(folder_ / "good.h5");
    Counts counts;
    count(folder_ / "good.h5", samples_, &counts);
    ASSERT_EQ(counts.same, 1);
  }
  void try_bytes(std::string_view bytes, Counts* counts) {
    write_quickly(folder_ / "bad.h5", bytes);
    count(folder_ / "bad.h5", samples_, counts);
  }
  void print(const char* what, const Counts& counts) const {
    std::printf("shard version %d (%zu bytes): %s: %d refused, %d read back equal, %d silently wrong\n", GetParam() ? 2 : 1,
                good_.size(), what, counts.refused, counts.same, counts.wrong);
  }
  TempDir folder_;
  std::vector<ShardSample> samples_ = make_samples(GetParam());
  std::string good_;
  std::mt19937_64 random_{2025};
};

TEST_P(FuzzShard, AFlippedBitIsReportedOrChangesNothing) {
  Counts counts;
  for (int i = 0; i < 1000; ++i) {
    // Every second one in the first 4 KiB, where most of HDF5's own structures are.
    std::string bad = i % 2 == 0 ? with_flipped_bit(good_, random_)
                                 : with_flipped_bit(good_.substr(0, 4096), random_) + good_.substr(std::min<size_t>(good_.size(), 4096));
    const int wrong = counts.wrong;
    try_bytes(bad, &counts);
    if (counts.wrong == wrong) continue;
    const auto at = std::mismatch(bad.begin(), bad.end(), good_.begin()).first - bad.begin();
    ADD_FAILURE() << "a bit flipped in byte " << at << " gave other samples and no error";
  }
  print("1000 bit flips", counts);
  EXPECT_EQ(counts.refused + counts.same, 1000);
  EXPECT_GT(counts.refused, 500);
}

TEST_P(FuzzShard, ATruncatedOneIsRefused) {
  Counts counts;
  for (size_t i = 0; i < 500; ++i) try_bytes(std::string_view(good_).substr(0, good_.size() * i / 500), &counts);
  print("500 truncations", counts);
  EXPECT_EQ(counts.refused, 500);
}

TEST_P(FuzzShard, CoarseDamageIsReportedOrChangesNothing) {
  const std::string tokens[] = {std::string(8, '\0'), std::string(8, '\xff'), "OHDR", "FRHP", "BTHD", "TREE", "GCOL", "\x89HDF\r\n\x1a\n"};
  Counts counts;
  const int trials = fuzz_count(1000, 20'000);
  for (int i = 0; i < trials; ++i) {
    const size_t begin = i % 2 == 0 ? 0 : random_() % good_.size();
    try_bytes(good_.substr(0, begin) + mutated(good_.substr(begin), tokens, random_), &counts);
  }
  print(fmt::format("{} coarse changes", trials).c_str(), counts);
  EXPECT_EQ(counts.wrong, 0);
  EXPECT_GT(counts.refused, trials / 2);
}

INSTANTIATE_TEST_SUITE_P(Versions, FuzzShard, testing::Bool());

}  // namespace
}  // namespace lorashard
