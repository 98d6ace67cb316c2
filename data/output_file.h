// Writing at a place of a file that is there already: the blobs of shards go past HDF5, which would only tell a full disk from a
// broken file by its prose. Called by the shard writers.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>

namespace lorashard {

/// Every failure is Error(io) naming the file.
class OutputFile {
 public:
  explicit OutputFile(const std::filesystem::path& path);
  ~OutputFile();
  OutputFile(const OutputFile&) = delete;
  OutputFile& operator=(const OutputFile&) = delete;

  void write_at(std::span<const uint8_t> bytes, uint64_t offset);
  void close();  ///< says what the file system kept to itself until now

 private:
  [[noreturn]] void fail() const;
  std::filesystem::path path_;
  int fd_;
};

}  // namespace lorashard
