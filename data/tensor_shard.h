// Rows of equal size in one HDF5 file: what a cache keeps of pictures or captions (latents' moments, text embeddings). One
// contiguous blob with a checksum a row and a text that says what the rows are; docs/shard_format.md has it byte by byte.
// Written once, never changed.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>

namespace lorashard {

/// Writes `rows` (num_rows * row_bytes bytes, one after the other) to `path` durably (temporary, fsync, rename). The bytes depend
/// on the arguments alone. `identity`: what a reader must expect, such as the hash of everything the rows follow from.
void write_tensor_shard(const std::filesystem::path& path, const std::string& identity, int64_t row_bytes,
                        std::span<const uint8_t> rows);

/// Opened for reading; rows are read with pread when asked for. Thread-safe after construction.
class TensorShardReader {
 public:
  /// Throws Error(bad_data) naming the file when it isn't what docs/shard_format.md says, or has another identity or row size.
  TensorShardReader(const std::filesystem::path& path, const std::string& identity, int64_t row_bytes);
  ~TensorShardReader();
  TensorShardReader(TensorShardReader&&) noexcept;

  int64_t num_rows() const;
  /// Copies row `i` to `out` (row_bytes). Its checksum is compared: Error(bad_data) names file and row.
  void read_row(int64_t i, void* out) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
