// index.json of a pack: which shards it has, with their sizes and hashes. docs/shard_format.md describes it.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lorashard {

inline constexpr char kPackIndexName[] = "index.json";

struct PackShard {
  std::string file;  ///< always shard_file_name(its position)
  int64_t num_samples = 0;
  uint64_t image_bytes = 0;
  uint64_t file_bytes = 0;
  std::string sha256;
  std::string index_checksum;  ///< the shard's own attribute, 16 hexadecimal digits; empty in packs made before it was kept
};

struct PackIndex {
  int64_t num_samples = 0, num_captions = 0;
  uint64_t image_bytes = 0;
  std::string kind = "image_folder";  ///< of the source: or "parquet"
  std::string captions;               ///< where they came from: to_string(CaptionSource)
  std::vector<PackShard> shards;
};

std::string shard_file_name(int64_t position);  ///< "shard-00000.h5"
std::string to_json(const PackIndex& index);
/// Throws Error(bad_data) naming `path` for text that isn't the index of a pack, or doesn't add up.
PackIndex parse_pack_index(const std::string& text, const std::filesystem::path& path);

}  // namespace lorashard
