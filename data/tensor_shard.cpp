#include "data/tensor_shard.h"

#include <fmt/format.h>

#include <vector>

#include "data/hdf5_file.h"
#include "data/output_file.h"
#include "data/patient_file.h"
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
    OutputFile blob(temporary);
    blob.write_at(rows, extent.offset);
    blob.close();
  });
}

struct TensorShardReader::Impl {
  explicit Impl(const std::filesystem::path& file_path) : path(file_path), file(file_path) {}
  void read_index(const std::string& identity, uint64_t expected_row_bytes);

  std::filesystem::path path;
  PatientFile file;
  uint64_t offset = 0, row_bytes = 0;
  std::vector<uint64_t> checksums;
};

void TensorShardReader::Impl::read_index(const std::string& identity, uint64_t expected_row_bytes) {
  const Hdf5Reader hdf5(path, {"checksums", "rows"});
  if (hdf5.read_string_attribute("format") != kFormat) broken(path, "attribute 'format': another format");
  if (const uint64_t version = hdf5.read_number_attribute("version"); version != kVersion)
    broken(path, fmt::format("attribute 'version': expected {}, found {}", kVersion, version));
  if (hdf5.read_string_attribute("identity") != identity) broken(path, "attribute 'identity': made of something else");
  row_bytes = hdf5.read_number_attribute("row_bytes");
  if (row_bytes != expected_row_bytes)
    broken(path, fmt::format("attribute 'row_bytes': expected {}, found {}", expected_row_bytes, row_bytes));
  const FileExtent rows = hdf5.find_contiguous("rows");
  checksums = hdf5.read_numbers("checksums");
  if (rows.bytes / row_bytes != checksums.size() || rows.bytes % row_bytes != 0)
    broken(path, fmt::format("dataset '/rows': expected {} rows of {} bytes, found {} bytes", checksums.size(), row_bytes, rows.bytes));
  offset = rows.offset;
}

TensorShardReader::TensorShardReader(const std::filesystem::path& path, const std::string& identity, int64_t row_bytes) {
  try_patiently([&] {
    impl_ = std::make_unique<Impl>(path);
    impl_->read_index(identity, static_cast<uint64_t>(row_bytes));
  });
}

TensorShardReader::~TensorShardReader() = default;
TensorShardReader::TensorShardReader(TensorShardReader&&) noexcept = default;

int64_t TensorShardReader::num_rows() const { return static_cast<int64_t>(impl_->checksums.size()); }

void TensorShardReader::read_row(int64_t i, void* out) const {
  LORASHARD_CHECK(i >= 0 && i < num_rows(), "row {} of {} in '{}'", i, num_rows(), impl_->path.string());
  const uint64_t start = impl_->offset + static_cast<uint64_t>(i) * impl_->row_bytes;
  if (const size_t found = impl_->file.read(out, impl_->row_bytes, start); found < impl_->row_bytes)
    broken(impl_->path, fmt::format("row {}: expected {} bytes, found {}: the file is cut short", i, impl_->row_bytes, found));
  if (shard_layout::checksum(out, impl_->row_bytes) != impl_->checksums[static_cast<size_t>(i)])
    broken(impl_->path, fmt::format("row {}: the checksum of its bytes differs", i));
}

}  // namespace lorashard
