// The reader of parquet files as the rest of lorashard sees it: a second shared library, liblorashard_parquet.so, loaded when a parquet
// source is first given. Only it needs Apache Arrow, so a machine that only trains doesn't. No Arrow headers here.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/metadata_table.h"

namespace lorashard {

/// Of a row is read what its pictures are listed by, or the pictures: never both.
enum class ParquetPart { texts, pictures };

struct ParquetRow {
  int64_t row = 0;    ///< in the file, from 0
  int row_group = 0;  ///< that it lies in
  // texts
  std::string name = {};  ///< the path beside the picture's bytes; empty when there is none
  std::optional<std::vector<std::string>> captions = {};  ///< UTF-8; nothing when null or not read
  std::optional<double> weight = {}, repeats = {};  ///< nothing when null or not read
  // pictures
  std::optional<std::vector<uint8_t>> image = {}, mask = {};  ///< still encoded; nothing when null or not read
};

/// The rows of a parquet file, in order. Holds a batch of them in memory. One thread.
class ParquetReader {
 public:
  virtual ~ParquetReader() = default;
  /// False after the last row. Throws Error(bad_data) naming the file, row group and row, Error(io).
  virtual bool next(ParquetRow& row) = 0;
};

struct ParquetApi;  // data/parquet_api.h

class ParquetLibrary {
 public:
  /// Looks for liblorashard_parquet.so in `folder` and loads it. Never throws for what is missing: why_not() says it.
  explicit ParquetLibrary(const std::filesystem::path& folder);

  const std::string& why_not() const { return why_not_; }  ///< empty when loaded
  const std::string& hint() const { return hint_; }
  /// "Arrow 26.0.1". Requires: loaded.
  std::string version() const;

  /// Opens the file `path` to read `part` of the columns that have a name. Pictures and masks are structs {bytes: binary, path: string},
  /// as Hugging Face's datasets write them, or binary; captions are strings or lists of strings; weights and repeats are numbers.
  /// Throws Error(usage) without the library and for a column that isn't there (it lists those that are), Error(bad_data) for a file
  /// that is no parquet or is damaged and for a column of another type, Error(io).
  std::unique_ptr<ParquetReader> open(const std::filesystem::path& path, const MetadataColumns& columns, ParquetPart part) const;

 private:
  std::string why_not_, hint_;
  const ParquetApi* api_ = nullptr;
};

/// The one beside this program, loaded at the first call and never unloaded. Thread-safe.
const ParquetLibrary& parquet_library();

}  // namespace lorashard
