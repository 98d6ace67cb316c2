// Shards of version 2: captions, masks, weights and repeats beside the pictures.
#include <gtest/gtest.h>

#include "data/shard.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

std::vector<ShardSample> make_samples() {
  std::vector<ShardSample> samples(3);
  for (size_t i = 0; i < samples.size(); ++i) {
    samples[i].file_name = fmt::format("{}.png", i);
    samples[i].caption = fmt::format("caption {}", i);
    samples[i].size = {8, 8};
    samples[i].image_bytes.assign(100 + i, static_cast<uint8_t>(i));
  }
  return samples;
}

TEST(ShardExtras, ComeBack) {
  const TempDir folder;
  std::vector<ShardSample> samples = make_samples();
  samples[0].more_captions = {"another", "", "ä third"};
  samples[1].mask_bytes.assign(77, 9);
  samples[1].weight = 0.1;
  samples[2].repeats = 12;
  write_shard(folder.path() / "shard.h5", samples);
  const ShardReader reader(folder.path() / "shard.h5");
  for (int64_t i = 0; i < 3; ++i) {
    const ShardSample& sample = samples[static_cast<size_t>(i)];
    std::vector<std::string> captions = {sample.caption};
    captions.insert(captions.end(), sample.more_captions.begin(), sample.more_captions.end());
    EXPECT_EQ(std::vector<std::string>(reader.captions(i).begin(), reader.captions(i).end()), captions);
    EXPECT_EQ(reader.read_image(i), sample.image_bytes);
    EXPECT_EQ(reader.read_mask(i), sample.mask_bytes);
    EXPECT_EQ(reader.weight(i), sample.weight);
    EXPECT_EQ(reader.repeats(i), sample.repeats);
  }
}

TEST(ShardExtras, AShardWithoutThemIsAsItAlwaysWas) {
  const TempDir folder;
  write_shard(folder.path() / "shard.h5", make_samples());
  const ShardReader reader(folder.path() / "shard.h5");
  EXPECT_EQ(read_file(folder.path() / "shard.h5").find("caption_counts"), std::string::npos);
  EXPECT_EQ(reader.captions(2).size(), 1u);
  EXPECT_TRUE(reader.read_mask(0).empty());
  EXPECT_TRUE(reader.weight(0) == 1 && reader.repeats(0) == 1);
}

TEST(ShardExtras, DamageIsFoundOrHitsNothing) {
  const TempDir folder;
  std::vector<ShardSample> samples = make_samples();
  samples[0].more_captions = {"another"};
  samples[1].mask_bytes.assign(500, 9);
  samples[2].weight = 3;
  const auto path = folder.path() / "shard.h5";
  write_shard(path, samples);
  const std::string whole = read_file(path);
  int found = 0;
  for (size_t i = 0; i < 60; ++i) {
    std::string damaged = whole;
    damaged[(i * 7919) % damaged.size()] ^= 0x10;
    write_durably(path, damaged);
    try {
      const ShardReader reader(path);
      for (int64_t row = 0; row < 3; ++row) {
        const ShardSample& sample = samples[static_cast<size_t>(row)];
        ASSERT_EQ(reader.read_image(row), sample.image_bytes);
        ASSERT_EQ(reader.read_mask(row), sample.mask_bytes);
        ASSERT_EQ(reader.weight(row), sample.weight);
        ASSERT_EQ(reader.captions(row).size(), 1 + sample.more_captions.size());
      }
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
      ++found;
    }
  }
  EXPECT_GT(found, 10);
}

TEST(ShardExtras, NoSampleRepeatsLessThanOnce) {
  const TempDir folder;
  std::vector<ShardSample> samples = make_samples();
  samples[1].repeats = 0;
  EXPECT_THROW(write_shard(folder.path() / "shard.h5", samples), Error);
}

}  // namespace
}  // namespace lorashard
