#include "data/tensor_store.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {

TensorStore::TensorStore(std::filesystem::path folder, std::string identity, int64_t num_rows, int64_t row_bytes)
    : folder_(std::move(folder)), identity_(std::move(identity)), num_rows_(num_rows), row_bytes_(row_bytes) {
  LORASHARD_CHECK(num_rows_ > 0 && row_bytes_ > 0, "{} rows of {} bytes in '{}'", num_rows_, row_bytes_, folder_.string());
}

int64_t TensorStore::rows_of(int64_t shard) const { return std::min(kRowsPerShard, num_rows_ - first_row(shard)); }

std::filesystem::path TensorStore::path_of(int64_t shard) const { return folder_ / fmt::format("{:05}.h5", shard); }

std::vector<int64_t> TensorStore::missing() const {
  std::vector<int64_t> found;
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    const std::filesystem::path path = path_of(shard);
    if (std::filesystem::exists(path)) {
      try {
        if (TensorShardReader(path, identity_, row_bytes_).num_rows() == rows_of(shard)) continue;
        log::warning("'{}' has another number of rows than it should; it is made anew", path.string());
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::bad_data) throw;
        log::warning("{}; it is made anew", error.message());
      }
    }
    found.push_back(shard);
  }
  return found;
}

void TensorStore::write(int64_t shard, std::span<const uint8_t> rows) const {
  LORASHARD_CHECK(static_cast<int64_t>(rows.size()) == rows_of(shard) * row_bytes_, "{} bytes for shard {} of '{}'", rows.size(), shard,
                  folder_.string());
  write_tensor_shard(path_of(shard), identity_, row_bytes_, rows);
}

void TensorStore::open() {
  shards_.clear();
  for (int64_t shard = 0; shard < num_shards(); ++shard) {
    shards_.emplace_back(path_of(shard), identity_, row_bytes_);
    if (shards_.back().num_rows() != rows_of(shard)) {
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}': expected {} rows, found {}", path_of(shard).string(), rows_of(shard),
                                                   shards_.back().num_rows()),
                  "remove the file: it is a cache and is made anew");
    }
  }
}

void TensorStore::read_row(int64_t row, void* out) const {
  LORASHARD_CHECK(row >= 0 && row < num_rows_ && !shards_.empty(), "row {} of {} in '{}'", row, num_rows_, folder_.string());
  shards_[static_cast<size_t>(row / kRowsPerShard)].read_row(row % kRowsPerShard, out);
}

}  // namespace lorashard
