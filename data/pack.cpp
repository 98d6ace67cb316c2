#include "data/pack.h"

#include <sys/resource.h>

#include <algorithm>

#include "data/pack_index.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/sha256.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;

/// Each shard stays open; the usual limit of 1024 files would end at 256 GB of pictures.
void allow_open_files(size_t count) {
  constexpr rlim_t kForTheRest = 512;
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= count + kForTheRest) return;
  limit.rlim_cur = std::min<rlim_t>(limit.rlim_max, count + kForTheRest);
  setrlimit(RLIMIT_NOFILE, &limit);  // when it fails, opening a shard says so
}

[[noreturn]] void broken(const fs::path& path, const std::string& what) {
  throw Error(ErrorKind::bad_data, fmt::format("opening the shard '{}': {}", path.string(), what),
              "the pack is incomplete or was changed: pack the images again with `lorashard pack`");
}

PackIndex read_index(const fs::path& folder, std::string* hash) {
  const fs::path path = folder / kPackIndexName;
  std::error_code error;
  if (!fs::exists(path, error))
    throw Error(ErrorKind::usage,
                fmt::format("opening the pack '{}': expected an {} in it, found none", folder.string(), kPackIndexName),
                "make one with `lorashard pack SOURCE --out DIR`");
  const std::string text = read_file(path, kMaxIndexBytes);
  *hash = sha256(text);
  return parse_pack_index(text, path);
}

}  // namespace

bool is_pack(const fs::path& folder) {
  std::error_code error;
  const fs::path path = folder / kPackIndexName;
  if (!fs::is_regular_file(path, error)) return false;
  try {
    parse_pack_index(read_file(path, kMaxIndexBytes), path);
  } catch (const Error& not_ours) {
    if (not_ours.kind() == ErrorKind::bad_data) return false;
    throw;
  }
  return true;
}

Pack::Pack(const fs::path& folder) : folder_(folder) {
  const PackIndex index = read_index(folder, &hash_);
  allow_open_files(index.shards.size());
  for (const PackShard& shard : index.shards) {
    const fs::path path = folder / shard.file;
    std::error_code error;
    const uint64_t file_bytes = fs::file_size(path, error);
    if (error) broken(path, error.message());
    if (file_bytes != shard.file_bytes)
      broken(path, fmt::format("expected {} bytes, found {}", shard.file_bytes, file_bytes));
    shards_.emplace_back(path);
    if (shards_.back().num_samples() != shard.num_samples)
      broken(path, fmt::format("expected {} samples, found {}", shard.num_samples, shards_.back().num_samples()));
    const std::string checksum = fmt::format("{:016x}", shards_.back().index_checksum());
    if (!shard.index_checksum.empty() && checksum != shard.index_checksum)
      broken(path, fmt::format("expected the index_checksum {}, found {}: it is another shard", shard.index_checksum, checksum));
    first_row_.push_back(num_samples_);
    num_samples_ += shard.num_samples;
  }
  first_row_.push_back(num_samples_);
  for (int64_t row = 0; row < num_samples_; ++row) {
    num_images_in_epoch_ += repeats(row);
    has_weights_ = has_weights_ || weight(row) != 1;
  }
}

std::pair<const ShardReader*, int64_t> Pack::locate(int64_t row) const {
  LORASHARD_CHECK(row >= 0 && row < num_samples_, "row {} of {}", row, num_samples_);
  const auto next = std::upper_bound(first_row_.begin(), first_row_.end(), row);
  const auto shard = static_cast<size_t>(next - first_row_.begin() - 1);
  return {&shards_[shard], row - first_row_[shard]};
}

const std::string& Pack::caption(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->caption(i);
}

std::span<const std::string> Pack::captions(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->captions(i);
}

std::vector<uint8_t> Pack::read_mask(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->read_mask(i);
}

double Pack::weight(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->weight(i);
}

int64_t Pack::repeats(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->repeats(i);
}

const std::string& Pack::file_name(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->file_name(i);
}

ImageSize Pack::size(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->size(i);
}

std::vector<uint8_t> Pack::read_image(int64_t row) const {
  const auto [shard, i] = locate(row);
  return shard->read_image(i);
}

void Pack::verify() const {
  std::string hash;
  const PackIndex index = read_index(folder_, &hash);
  if (hash != hash_) broken(folder_ / kPackIndexName, "it was changed since the pack was opened");
  for (const PackShard& shard : index.shards) {
    const fs::path path = folder_ / shard.file;
    const std::string found = sha256_file(path);
    if (found != shard.sha256) broken(path, fmt::format("expected the SHA-256 {}, found {}", shard.sha256, found));
  }
  for (int64_t row = 0; row < num_samples_; ++row) {
    read_image(row);
    read_mask(row);
  }
}

}  // namespace lorashard
