// A small HDF5 file of one-dimensional datasets in its root group: all that shards need, with every failure as an Error
// that names file and dataset. Checksummed metadata (libver V110), no time stamps, no plugins, no links out of the
// file. HDF5 holds one lock for the whole process, so nothing here belongs into a hot path. Thread-safe between
// objects.
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace lorashard {

/// Where a contiguous dataset lies in its file.
struct FileExtent {
  uint64_t offset = 0, bytes = 0;
};

/// Every failure is Error(io): the disk is full, or the path cannot be written.
class Hdf5Writer {
 public:
  explicit Hdf5Writer(const std::filesystem::path& path);
  ~Hdf5Writer();
  Hdf5Writer(const Hdf5Writer&) = delete;
  Hdf5Writer& operator=(const Hdf5Writer&) = delete;

  void write_attribute(const std::string& name, const std::string& value);
  void write_attribute(const std::string& name, uint64_t value);
  /// Chunked, each chunk with a fletcher32 checksum. `values` must not be empty.
  void write_dataset(const std::string& name, std::span<const uint64_t> values);
  void write_dataset(const std::string& name, std::span<const uint8_t> values);
  /// A contiguous uint8 dataset whose bytes the caller writes into the file after close().
  FileExtent reserve_dataset(const std::string& name, uint64_t bytes);
  void close();

 private:
  void write_chunked(const std::string& name, int64_t type, const void* values, uint64_t count, uint64_t chunk);
  std::filesystem::path path_;
  int64_t file_ = -1;
};

/// Every failure is Error(bad_data) naming file and dataset, except a file that can't be opened at all (usage or io).
class Hdf5Reader {
 public:
  /// Refuses anything in the root group but the datasets in `names`, all of them hard links. Those in `more_names` may be
  /// there too: all of them, or none.
  Hdf5Reader(const std::filesystem::path& path, const std::vector<std::string>& names,
             const std::vector<std::string>& more_names = {});
  ~Hdf5Reader();
  Hdf5Reader(const Hdf5Reader&) = delete;
  Hdf5Reader& operator=(const Hdf5Reader&) = delete;

  uint64_t file_bytes() const { return file_bytes_; }
  bool has_more() const { return has_more_; }  ///< `more_names` are there
  std::string read_string_attribute(const std::string& name) const;
  uint64_t read_number_attribute(const std::string& name) const;
  /// Only what write_dataset writes; its size is held against the file's before anything is allocated.
  std::vector<uint64_t> read_numbers(const std::string& name) const;
  std::vector<uint8_t> read_bytes(const std::string& name) const;
  /// Only what reserve_dataset makes; it lies wholly inside the file.
  FileExtent find_contiguous(const std::string& name) const;

 private:
  uint64_t num_links() const;
  void check_links(const std::vector<std::string>& names) const;
  uint64_t open_chunked(const std::string& name, int64_t type, uint64_t element_bytes, int64_t* dataset) const;
  std::filesystem::path path_;
  uint64_t file_bytes_ = 0;
  int64_t file_ = -1;
  bool has_more_ = false;
};

}  // namespace lorashard
