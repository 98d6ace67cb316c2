// One HDF5 shard: encoded pictures as one contiguous blob with offsets and a checksum a sample, captions as one UTF-8
// blob with offsets. docs/shard_format.md has it byte by byte. A shard is written once and never changed.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "data/image.h"

namespace lorashard {

struct ShardSample {
  std::string file_name;             ///< as in the source, for messages
  std::string caption;               ///< UTF-8
  ImageSize size;                    ///< upright, in pixels
  std::vector<uint8_t> image_bytes;  ///< the file as it was found, still encoded
  std::vector<std::string> more_captions = {};  ///< UTF-8: others of the same picture
  std::vector<uint8_t> mask_bytes = {};         ///< an encoded picture of the same size; empty: none
  double weight = 1;                            ///< of its loss
  int64_t repeats = 1;                          ///< how often an epoch has it
};

/// Writes `samples` to `path` durably (temporary, fsync, rename); returns its index_checksum. The bytes depend on the samples alone.
uint64_t write_shard(const std::filesystem::path& path, const std::vector<ShardSample>& samples);

/// A shard opened for reading: its index is in memory, pictures are read with pread when asked for.
/// Thread-safe after construction.
class ShardReader {
 public:
  /// Throws Error(bad_data) naming the file and the dataset for anything that isn't as docs/shard_format.md says.
  explicit ShardReader(const std::filesystem::path& path);
  ~ShardReader();
  ShardReader(ShardReader&&) noexcept;

  int64_t num_samples() const;
  uint64_t index_checksum() const;  ///< over everything but the pictures and masks themselves, whose checksums are in it
  const std::string& file_name(int64_t i) const;
  const std::string& caption(int64_t i) const { return captions(i)[0]; }
  std::span<const std::string> captions(int64_t i) const;  ///< at least one
  ImageSize size(int64_t i) const;
  /// The encoded picture of sample `i`; its checksum is compared: Error(bad_data) names shard, sample and file_name.
  std::vector<uint8_t> read_image(int64_t i) const;
  /// Its mask, still encoded; empty where it has none. As read_image().
  std::vector<uint8_t> read_mask(int64_t i) const;
  double weight(int64_t i) const;
  int64_t repeats(int64_t i) const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
