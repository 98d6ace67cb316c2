// Reading and writing at a place of a file, past HDF5: many threads read one shard at once. Called by the shard files' readers
// and writers.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

namespace lorashard {

/// An open descriptor, closed at the end.
class PositionalReader {
 public:
  /// Throws Error(usage) when there is no such file, Error(io).
  explicit PositionalReader(const std::filesystem::path& path);
  ~PositionalReader();
  PositionalReader(const PositionalReader&) = delete;
  PositionalReader& operator=(const PositionalReader&) = delete;

  /// Fills `out` from `offset`. `where` says what is being read: Error(io), or Error(bad_data) when the file ends before.
  /// Thread-safe.
  void read_at(std::span<uint8_t> out, uint64_t offset, const std::string& where) const;

 private:
  int fd_;
};

/// Writes into a file that is there already; close() says what the file system kept to itself.
class PositionalWriter {
 public:
  explicit PositionalWriter(const std::filesystem::path& path);
  ~PositionalWriter();
  PositionalWriter(const PositionalWriter&) = delete;
  PositionalWriter& operator=(const PositionalWriter&) = delete;
  void write_at(std::span<const uint8_t> bytes, uint64_t offset);  ///< Error(io)
  void close();                                                    ///< Error(io)

 private:
  [[noreturn]] void fail() const;
  std::filesystem::path path_;
  int fd_;
};

}  // namespace lorashard
