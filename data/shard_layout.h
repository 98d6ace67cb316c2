// The names and numbers that shard_writer.cpp and shard_reader.cpp share. docs/shard_format.md explains them.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lorashard::shard_layout {

inline constexpr char kFormat[] = "lorashard-shard";
inline constexpr uint64_t kVersion = 1;  ///< persisted: raise it with every change of the format
/// Of a shard with a sample that has several captions, a mask, a weight or repeats: it has the datasets of Extras too.
inline constexpr uint64_t kVersionWithExtras = 2;

/// What few datasets have. n samples.
struct Extras {
  std::vector<uint64_t> caption_counts;  ///< captions of each sample, at least 1: then captions aren't one a sample
  std::vector<uint64_t> repeats;         ///< how often an epoch has each sample, at least 1
  std::vector<uint64_t> weights;         ///< bits of a double: the sample's loss is multiplied by it
  std::vector<uint64_t> mask_offsets;    ///< n + 1, into `masks`; equal neighbours: no mask
  std::vector<uint64_t> mask_checksums;  ///< as image_checksums
};

/// Everything in a shard but the pictures. n samples; offsets have n + 1 entries, the first 0.
struct Index {
  std::vector<uint64_t> image_offsets;
  std::vector<uint64_t> image_checksums;  ///< xxh3 (64 bits) of each encoded picture
  std::vector<uint64_t> image_sizes;      ///< height, width of each upright picture
  std::vector<uint64_t> caption_offsets;
  std::vector<uint8_t> captions;  ///< UTF-8, one after the other, and one zero byte at the end
  std::vector<uint64_t> file_name_offsets;
  std::vector<uint8_t> file_names;  ///< likewise
  std::optional<Extras> extras;
};

/// xxh3 (64 bits) over the arrays of `index` in the order above, as little-endian bytes: ties them to each other.
uint64_t index_checksum(const Index& index);

/// xxh3 (64 bits) of a picture's bytes.
uint64_t checksum(const void* data, uint64_t bytes);

}  // namespace lorashard::shard_layout
