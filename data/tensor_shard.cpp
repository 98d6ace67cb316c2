#include "data/tensor_shard.h"

#include <fmt/format.h>

#include <vector>

#include "data/hdf5_file.h"
#include "data/positional_io.h"
#include "data/shard_layout.h"
#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

constexpr char kFormat[] = "lorashard-tensors";
constexpr uint64_t kVersion = 1;  // persisted: raise it with every change of the format

[[noreturn]] void broken(const std::filesystem::path& path, const std::string& what) {
  throw Error(ErrorKind::bad_data, fmt::format("reading '{}': {}", path.string(), what),
              "remove the file: it is a cache and is made anew");
}

}  // namespace

void write_tensor_shard(const std::filesystem::path& path, const std::string& identity, int64_t row_bytes,
                        std::span<const uint8_t> rows) {
  LORASHARD_CHECK(row_bytes > 0 && !rows.empty() && rows.size() % static_cast<size_t>(row_bytes) == 0,
                  "{} bytes in rows of {} for '{}'", rows.size(), row_bytes, path.string());
  std::vector<uint64_t> checksums;
  for (size_t at = 0; at < rows.size(); at += static_cast<size_t>(row_bytes)) {
    checksums.push_back(shard_layout::checksum(rows.data() + at, static_cast<uint64_t>(row_bytes)));
  }
  write_durably(path, [&](const std::filesystem::path& temporary) {
    Hdf5Writer file(temporary);
    file.write_attribute("format", kFormat);
    file.write_attribute("version", kVersion);
    file.write_attribute("identity", identity);
    file.write_attribute("row_bytes", static_cast<uint64_t>(row_bytes));
    file.write_dataset("checksums", checksums);
    const FileExtent extent = file.reserve_dataset("rows", rows.size());
    file.close();
    PositionalWriter bytes(temporary);
    bytes.write_at(rows, extent.offset);
    bytes.close();
  });
}

struct TensorShardReader::Impl {
  std::filesystem::path path;
  PositionalReader file;
  uint64_t offset = 0, row_bytes = 0;
  std::vector<uint64_t> checksums;
};

TensorShardReader::TensorShardReader(const std::filesystem::path& path, const std::string& identity, int64_t row_bytes) {
  const Hdf5Reader file(path, {"checksums", "rows"});
  if (file.read_string_attribute("format") != kFormat) broken(path, "attribute 'format': another format");
  if (const uint64_t version = file.read_number_attribute("version"); version != kVersion)
    broken(path, fmt::format("attribute 'version': expected {}, found {}", kVersion, version));
  if (file.read_string_attribute("identity") != identity) broken(path, "attribute 'identity': made of something else");
  if (const uint64_t found = file.read_number_attribute("row_bytes"); found != static_cast<uint64_t>(row_bytes))
    broken(path, fmt::format("attribute 'row_bytes': expected {}, found {}", row_bytes, found));
  const FileExtent rows = file.find_contiguous("rows");
  std::vector<uint64_t> checksums = file.read_numbers("checksums");
  if (rows.bytes != checksums.size() * static_cast<uint64_t>(row_bytes))
    broken(path, fmt::format("dataset '/rows': expected {} rows of {} bytes, found {} bytes", checksums.size(), row_bytes, rows.bytes));
  impl_.reset(new Impl{path, PositionalReader(path), rows.offset, static_cast<uint64_t>(row_bytes), std::move(checksums)});
}

TensorShardReader::~TensorShardReader() = default;
TensorShardReader::TensorShardReader(TensorShardReader&&) noexcept = default;

int64_t TensorShardReader::num_rows() const { return static_cast<int64_t>(impl_->checksums.size()); }

void TensorShardReader::read_row(int64_t i, void* out) const {
  LORASHARD_CHECK(i >= 0 && i < num_rows(), "row {} of {} in '{}'", i, num_rows(), impl_->path.string());
  const std::span<uint8_t> bytes(static_cast<uint8_t*>(out), impl_->row_bytes);
  impl_->file.read_at(bytes, impl_->offset + static_cast<uint64_t>(i) * impl_->row_bytes, fmt::format("reading '{}', row {}", impl_->path.string(), i));
  if (shard_layout::checksum(out, impl_->row_bytes) != impl_->checksums[static_cast<size_t>(i)])
    broken(impl_->path, fmt::format("row {}: the checksum of its bytes differs", i));
}

}  // namespace lorashard
