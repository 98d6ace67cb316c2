// Parquet files come from test_parquet.py, which makes them: $LORASHARD_FUZZ_PARQUET. Arrow's libraries and the small one that calls them
// are not instrumented: of them the sanitizer sees heap misuse in what they call, and crashes are seen.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "data/parquet_library.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/fuzz/fuzz.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

constexpr const char* kFolder = "LORASHARD_FUZZ_PARQUET";

struct Outcomes {
  int read = 0, refused = 0, other_columns = 0;
};

class FuzzParquet : public testing::Test {
 protected:
  FuzzParquet() : library_(environment("LORASHARD_BUILD_DIR")) {}

  static std::string environment(const char* name) {
    const char* value = std::getenv(name);
    return value == nullptr ? "" : value;
  }
  static std::vector<std::string> seeds() {
    std::vector<fs::path> paths;
    for (const auto& entry : fs::directory_iterator(environment(kFolder))) paths.push_back(entry.path());
    std::sort(paths.begin(), paths.end());
    std::vector<std::string> files;
    for (const fs::path& path : paths) files.push_back(read_file(path));
    return files;
  }

  /// Reads everything of a file as packing does; an Error(bad_data) naming it says no, Error(usage) that a column has another name now.
  void read(const std::string& bytes) {
    const fs::path path = folder_ / "birds.parquet";
    write_quickly(path, bytes);
    const MetadataColumns columns{.image = "image", .caption = "text", .mask = "mask", .weight = "weight", .repeats = "repeats"};
    try {
      for (const ParquetPart part : {ParquetPart::texts, ParquetPart::pictures}) {
        const auto reader = library_.open(path, columns, part);
        int64_t count = 0;
        for (ParquetRow row; reader->next(row); ++count) ASSERT_EQ(row.row, count);
      }
      ++outcomes_.read;
    } catch (const Error& error) {
      EXPECT_THAT(error.message(), HasSubstr("birds.parquet'"));
      EXPECT_TRUE(error.kind() == ErrorKind::bad_data || error.kind() == ErrorKind::usage) << error.what();
      if (error.kind() == ErrorKind::usage) EXPECT_THAT(error.message(), HasSubstr("expected a column '"));
      ++(error.kind() == ErrorKind::usage ? outcomes_.other_columns : outcomes_.refused);
    }
  }

  const ParquetLibrary library_;
  const TempDir folder_;
  Outcomes outcomes_;
};

TEST_F(FuzzParquet, DamagedFilesAreReadOrRefused) {
  if (environment(kFolder).empty()) GTEST_SKIP() << "run test_parquet.py";
  ASSERT_EQ(library_.why_not(), "");
  const std::vector<std::string> files = seeds();
  ASSERT_GE(files.size(), 3u);
  for (const std::string& file : files) read(file);
  ASSERT_EQ(outcomes_.read, std::ssize(files)) << "whole files";
  const int trials = fuzz_count(900, 30'000);
  std::mt19937_64 random(2026);
  const std::string tokens[] = {std::string(4, '\0'), std::string(4, '\xff'), "\xff\xff\xff\x7f", "\x15\x80\x80\x80\x10", "PAR1"};
  const int64_t before = start_watching_memory();
  for (int i = 0; i < trials; ++i) {
    const std::string& file = files[static_cast<size_t>(i) % files.size()];
    uint32_t footer = 0;
    std::memcpy(&footer, file.data() + file.size() - 8, 4);
    const size_t metadata = file.size() - 8 - footer;  // most of what can go wrong is said there
    switch (i / std::ssize(files) % 4) {
      case 0:
        read(with_flipped_bit(file, random));
        break;
      case 1:
        read(with_flipped_bit(file, random, metadata));
        break;
      case 2:
        read(file.substr(0, random() % file.size()));
        break;
      default: {  // the footer changed, and its length with it
        std::string changed = mutated(file.substr(metadata, footer), tokens, random);
        footer = static_cast<uint32_t>(changed.size());
        changed.append(reinterpret_cast<const char*>(&footer), 4);
        read(file.substr(0, metadata) + changed + "PAR1");
      }
    }
  }
  const int64_t growth = most_memory() - before;
  std::printf("parquet: %d damaged files out of %zu: %d read, %d refused, %d with another column; at most %ld MB more memory\n", trials,
              files.size(), outcomes_.read - static_cast<int>(files.size()), outcomes_.refused, outcomes_.other_columns, growth);
  EXPECT_GT(outcomes_.refused, trials / 3);
  EXPECT_LT(growth, 800) << "of a small file a page may take 512 MiB";
}

}  // namespace
}  // namespace lorashard
