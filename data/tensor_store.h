// A folder of tensor shards: num_rows rows of equal size that were made by many, in pieces of kRowsPerShard rows. What a piece
// holds depends on its number alone, not on who made it, so pieces that are there already are kept.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "data/tensor_shard.h"

namespace lorashard {

class TensorStore {
 public:
  static constexpr int64_t kRowsPerShard = 64;

  /// `identity` says what the rows follow from (see write_tensor_shard). Touches no file.
  TensorStore(std::filesystem::path folder, std::string identity, int64_t num_rows, int64_t row_bytes);

  int64_t num_shards() const { return (num_rows_ + kRowsPerShard - 1) / kRowsPerShard; }
  int64_t first_row(int64_t shard) const { return shard * kRowsPerShard; }
  int64_t rows_of(int64_t shard) const;
  int64_t row_bytes() const { return row_bytes_; }
  const std::filesystem::path& folder() const { return folder_; }

  /// The shards that are absent or damaged (the log names these).
  std::vector<int64_t> missing() const;
  void write(int64_t shard, std::span<const uint8_t> rows) const;  ///< Error(io)

  /// Opens all shards. Throws Error(bad_data), Error(usage) for one that isn't there.
  void open();
  /// Requires: open(). Thread-safe. Error(bad_data) naming file and row.
  void read_row(int64_t row, void* out) const;

 private:
  std::filesystem::path path_of(int64_t shard) const;
  std::filesystem::path folder_;
  std::string identity_;
  int64_t num_rows_, row_bytes_;
  std::vector<TensorShardReader> shards_;
};

}  // namespace lorashard
