#include "data/pack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "data/image_write.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr int kNumPictures = 40;

std::string name_of(int i) { return fmt::format("{:03}.png", i); }

class PackTest : public testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::create_directories(source());
    std::ofstream table(source() / "metadata.jsonl");
    for (int i = 0; i < kNumPictures; ++i) {
      Image image{16 + i % 7, 16 + i % 5, {}};
      for (int64_t k = 0; k < image.height * image.width * 3; ++k)
        image.rgb.push_back(static_cast<uint8_t>(k * k * (i + 1)));
      pictures_.push_back(encode_png(image));
      put(name_of(i), pictures_.back());
      table << fmt::format("{{\"file_name\": \"{}\", \"text\": \"caption {}\"}}\n", name_of(i), i);
    }
  }
  std::filesystem::path source() const { return folder_ / "source"; }
  std::filesystem::path out() const { return folder_ / "out"; }
  void put(const std::string& name, const std::vector<uint8_t>& bytes) const {
    std::ofstream(source() / name, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  }
  void damage(int i) const {
    std::vector<uint8_t> bytes = pictures_[static_cast<size_t>(i)];
    bytes.resize(bytes.size() - 30);
    put(name_of(i), bytes);
  }
  void expect_error(ErrorKind kind, const std::string& part, const PackOptions& options = {}) const {
    try {
      pack_images(source(), out(), options);
      ADD_FAILURE() << "no error, expected one with: " << part;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), kind) << error.what();
      EXPECT_THAT(error.what(), HasSubstr(part));
    }
  }
  static std::vector<std::string> files(const std::filesystem::path& folder) {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
  }

  TempDir folder_;
  std::vector<std::vector<uint8_t>> pictures_;
};

TEST_F(PackTest, HoldsEveryPictureByteForByteInTheOrderOfTheSource) {
  const PackReport report = pack_images(source(), out(), {.shard_bytes = 4000});
  EXPECT_EQ(report.num_samples, kNumPictures);
  EXPECT_EQ(report.num_captions, kNumPictures);
  EXPECT_GE(report.num_shards, 3);
  EXPECT_TRUE(report.left_out.empty());
  const Pack pack(out());
  ASSERT_EQ(pack.num_samples(), kNumPictures);
  uint64_t bytes = 0;
  for (int i = 0; i < kNumPictures; ++i) {
    EXPECT_EQ(pack.read_image(i), pictures_[static_cast<size_t>(i)]);
    EXPECT_EQ(pack.caption(i), fmt::format("caption {}", i));
    EXPECT_EQ(pack.file_name(i), name_of(i));
    EXPECT_EQ(pack.size(i).height, 16 + i % 7);
    EXPECT_EQ(pack.size(i).width, 16 + i % 5);
    bytes += pictures_[static_cast<size_t>(i)].size();
  }
  EXPECT_EQ(report.bytes, bytes);
  pack.verify();
}

TEST_F(PackTest, BytesDependNeitherOnThreadsNorOnThePlace) {
  pack_images(source(), folder_ / "one", {.shard_bytes = 4000, .num_threads = 1});
  const auto names = files(folder_ / "one");
  const std::filesystem::path moved = folder_ / "another place";
  std::filesystem::copy(source(), moved);
  for (const int num_threads : {2, 3, 16}) {
    const std::filesystem::path other = folder_ / fmt::format("with {}", num_threads);
    pack_images(moved, other, {.shard_bytes = 4000, .num_threads = num_threads});
    EXPECT_EQ(files(other), names);
    for (const std::string& name : names) EXPECT_EQ(read_file(other / name), read_file(folder_ / "one" / name)) << name;
    EXPECT_EQ(Pack(other).hash(), Pack(folder_ / "one").hash());
  }
}

TEST_F(PackTest, AnotherCaptionIsAnotherHash) {
  pack_images(source(), folder_ / "one", {});
  std::ofstream(source() / "new.png", std::ios::binary) << "not in the table";
  pack_images(source(), folder_ / "two", {});
  EXPECT_EQ(Pack(folder_ / "one").hash(), Pack(folder_ / "two").hash());
  std::string table = read_file(source() / "metadata.jsonl");
  table.replace(table.find("caption 7"), 9, "caption 8");
  std::ofstream(source() / "metadata.jsonl") << table;
  pack_images(source(), folder_ / "three", {});
  EXPECT_NE(Pack(folder_ / "one").hash(), Pack(folder_ / "three").hash());
}

TEST_F(PackTest, StopsAtTheFirstBadPictureWhateverTheThreads) {
  damage(20);
  damage(33);
  for (const int num_threads : {1, 4}) {
    expect_error(ErrorKind::bad_data, "'020.png'", {.shard_bytes = 2000, .num_threads = num_threads});
    EXPECT_FALSE(std::filesystem::exists(out())) << "a failed pack leaves nothing";
  }
}

TEST_F(PackTest, SkipsBadPicturesAndNamesThem) {
  damage(20);
  damage(33);
  const PackReport report = pack_images(source(), out(), {.on_bad_image = OnBadImage::skip});
  EXPECT_EQ(report.num_samples, kNumPictures - 2);
  EXPECT_EQ(report.num_skipped, 2);
  ASSERT_EQ(report.left_out.size(), 2);
  EXPECT_EQ(report.left_out[0].file_name, "020.png");
  EXPECT_EQ(report.left_out[1].file_name, "033.png");
  EXPECT_THAT(report.left_out[0].reason, HasSubstr("read error"));
  const Pack pack(out());
  EXPECT_EQ(pack.file_name(19), "019.png");
  EXPECT_EQ(pack.file_name(20), "021.png");
  EXPECT_EQ(pack.caption(20), "caption 21");
}

TEST_F(PackTest, NothingButBadPicturesIsAnError) {
  for (int i = 0; i < kNumPictures; ++i) damage(i);
  expect_error(ErrorKind::bad_data, "none of its 40 pictures can be decoded", {.on_bad_image = OnBadImage::skip});
}

TEST_F(PackTest, TakesTheFirstSamplesWhenAskedTo) {
  damage(1);
  const PackReport report = pack_images(source(), out(), {.on_bad_image = OnBadImage::skip, .max_samples = 5});
  EXPECT_EQ(report.num_samples, 5);
  EXPECT_EQ(Pack(out()).file_name(4), "005.png");
}

TEST_F(PackTest, NeverWritesOverWhatItDidNotMake) {
  std::filesystem::create_directories(out());
  std::ofstream(out() / "thesis.tex") << "important";
  expect_error(ErrorKind::usage, "found 'thesis.tex'");
  expect_error(ErrorKind::usage, "found 'thesis.tex'", {.overwrite = true});
  EXPECT_THAT(files(out()), ElementsAre("thesis.tex"));
}

TEST_F(PackTest, ReplacesAPackOnlyWhenAskedTo) {
  pack_images(source(), out(), {.shard_bytes = 2000});
  const std::string hash = Pack(out()).hash();
  expect_error(ErrorKind::usage, "--overwrite");
  EXPECT_EQ(Pack(out()).hash(), hash);
  pack_images(source(), out(), {.overwrite = true});
  EXPECT_THAT(files(out()), ElementsAre("index.json", "shard-00000.h5"));
  EXPECT_NE(Pack(out()).hash(), hash);
}

TEST_F(PackTest, ClearsAwayWhatAnInterruptedPackLeft) {
  pack_images(source(), out(), {.shard_bytes = 2000});
  const std::string hash = Pack(out()).hash();
  std::filesystem::remove(out() / "index.json");
  std::ofstream(out() / "shard-00099.h5.tmp-0123456789abcdef") << "half";
  EXPECT_FALSE(is_pack(out()));
  pack_images(source(), out(), {.shard_bytes = 2000});
  EXPECT_EQ(Pack(out()).hash(), hash);
  EXPECT_FALSE(std::filesystem::exists(out() / "shard-00099.h5.tmp-0123456789abcdef"));
}

TEST_F(PackTest, IsToldFromAnImageFolder) {
  EXPECT_FALSE(is_pack(source()));
  EXPECT_FALSE(is_pack(folder_ / "none"));
  std::ofstream(source() / "index.json") << "{\"format\": \"something else\"}";
  EXPECT_FALSE(is_pack(source()));
  pack_images(source(), out(), {});
  EXPECT_TRUE(is_pack(out()));
  EXPECT_THROW(pack_images(out(), folder_ / "again", {}), Error);
}

/// The Error of opening, or of verifying, the pack.
std::string damage_found(const std::filesystem::path& folder) {
  try {
    Pack(folder).verify();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data) << error.what();
    return error.what();
  }
  return "no error";
}

TEST_F(PackTest, DamageOfEveryKindIsFound) {
  pack_images(source(), out(), {.shard_bytes = 4000});
  const std::string shard = read_file(out() / "shard-00001.h5"), index = read_file(out() / "index.json");
  const auto with_shard = [&](const std::string& bytes) {
    std::ofstream(out() / "shard-00001.h5", std::ios::binary) << bytes;
    const std::string found = damage_found(out());
    std::ofstream(out() / "shard-00001.h5", std::ios::binary) << shard;
    return found;
  };
  const auto with_index = [&](const std::string& from, const std::string& to) {
    std::string changed = index;
    changed.replace(changed.find(from), from.size(), to);
    std::ofstream(out() / "index.json", std::ios::binary) << changed;
    const std::string found = damage_found(out());
    std::ofstream(out() / "index.json", std::ios::binary) << index;
    return found;
  };
  EXPECT_THAT(with_shard(shard + "x"), HasSubstr("expected"));
  EXPECT_THAT(with_shard(""), HasSubstr("found 0"));
  std::string flipped = shard;
  flipped[flipped.size() - 50] ^= 1;
  EXPECT_THAT(with_shard(flipped), HasSubstr("SHA-256"));
  EXPECT_THAT(with_shard(std::string(shard.size(), 'x')), HasSubstr("shard-00001.h5"));
  EXPECT_THAT(with_index("shard-00001.h5", "../../../shadow"), HasSubstr("expected the shard 'shard-00001.h5'"));
  EXPECT_THAT(with_index("\"num_samples\": 40", "\"num_samples\": 41"), HasSubstr("don't add up"));
  EXPECT_THAT(with_index("\"num_samples\": 40", "\"num_samples\": -1"), HasSubstr("'num_samples': expected a count"));
  EXPECT_THAT(with_index("\"version\": 1", "\"version\": 2"), HasSubstr("'version': expected 1, found 2"));
  EXPECT_THAT(with_index("{", "["), HasSubstr("index.json"));
  std::filesystem::remove(out() / "shard-00001.h5");
  EXPECT_THAT(damage_found(out()), HasSubstr("shard-00001.h5"));
  std::ofstream(out() / "shard-00001.h5", std::ios::binary) << shard;
  EXPECT_EQ(damage_found(out()), "no error");
}

TEST_F(PackTest, NoPackIsWrongUse) {
  try {
    Pack pack(source());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_THAT(error.hint(), HasSubstr("lorashard pack"));
  }
}

/// A shard of the same size and count, out of another pack.
TEST_F(PackTest, AnotherPacksShardIsRefused) {
  pack_images(source(), out(), {});
  std::vector<uint8_t> other = pictures_[5];
  other.push_back(0);  // decoders stop before it
  std::vector<uint8_t> longer = pictures_[6];
  longer.push_back(0);
  put(name_of(5), other);
  pack_images(source(), folder_ / "one", {});
  put(name_of(5), pictures_[5]);
  put(name_of(6), longer);
  pack_images(source(), folder_ / "two", {});
  ASSERT_EQ(std::filesystem::file_size(folder_ / "one/shard-00000.h5"), std::filesystem::file_size(folder_ / "two/shard-00000.h5"));
  EXPECT_EQ(Pack(folder_ / "two").num_samples(), kNumPictures);
  std::filesystem::rename(folder_ / "one/shard-00000.h5", folder_ / "two/shard-00000.h5");
  try {
    const Pack pack(folder_ / "two");
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr("it is another shard"));
  }
}

}  // namespace
}  // namespace lorashard
