#include <bit>
#include <cmath>
#include <numeric>
#include <optional>
#include <string_view>
#include <utility>

#include "data/hdf5_file.h"
#include "data/patient_file.h"
#include "data/shard.h"
#include "data/shard_layout.h"
#include "data/utf8.h"
#include "dist/error.h"

namespace lorashard {
namespace {

using shard_layout::Index;

constexpr uint64_t kMaxSide = uint64_t{1} << 31;

[[noreturn]] void broken(const std::filesystem::path& path, const std::string& what) {
  throw Error(ErrorKind::bad_data, fmt::format("reading shard '{}', {}", path.string(), what),
              "the file is damaged, or isn't a shard of lorashard: pack the images again");
}

/// `offsets` must cut `bytes` bytes into `count` pieces, in order.
void check_offsets(const std::filesystem::path& path, const std::string& name, const std::vector<uint64_t>& offsets,
                   uint64_t count, uint64_t bytes) {
  bool good = offsets.size() == count + 1 && offsets.front() == 0 && offsets.back() == bytes;
  for (size_t i = 1; good && i < offsets.size(); ++i) good = offsets[i - 1] <= offsets[i];
  if (!good)
    broken(path, fmt::format("dataset '/{}': expected {} rising offsets from 0 to {}", name, count + 1, bytes));
}

Index read_index(const Hdf5Reader& file) {
  Index index;
  index.image_offsets = file.read_numbers("image_offsets");
  index.image_checksums = file.read_numbers("image_checksums");
  index.image_sizes = file.read_numbers("image_sizes");
  index.caption_offsets = file.read_numbers("caption_offsets");
  index.captions = file.read_bytes("captions");
  index.file_name_offsets = file.read_numbers("file_name_offsets");
  index.file_names = file.read_bytes("file_names");
  if (file.has_more()) {
    index.extras = shard_layout::Extras{file.read_numbers("caption_counts"), file.read_numbers("repeats"), file.read_numbers("weights"),
                                        file.read_numbers("mask_offsets"), file.read_numbers("mask_checksums")};
  }
  return index;
}

constexpr uint64_t kMostRepeats = uint64_t{1} << 32;

/// How many captions there are in all; checks everything of `extras` but the offsets of captions.
uint64_t check_extras(const std::filesystem::path& path, const shard_layout::Extras& extras, uint64_t count,
                      uint64_t mask_bytes) {
  for (const auto* numbers : {&extras.caption_counts, &extras.repeats, &extras.weights, &extras.mask_checksums})
    if (numbers->size() != count) broken(path, fmt::format("its index: expected {} of each column", count));
  if (mask_bytes == 0) broken(path, "dataset '/masks': a zero byte is missing");
  check_offsets(path, "mask_offsets", extras.mask_offsets, count, mask_bytes - 1);
  uint64_t num_captions = 0;
  for (uint64_t i = 0; i < count; ++i) {
    const double weight = std::bit_cast<double>(extras.weights[i]);
    if (extras.caption_counts[i] == 0 || extras.caption_counts[i] >= kMaxSide)
      broken(path, fmt::format("dataset '/caption_counts': {} is no number of captions", extras.caption_counts[i]));
    if (extras.repeats[i] == 0 || extras.repeats[i] > kMostRepeats)
      broken(path, fmt::format("dataset '/repeats': {} is no number of repeats", extras.repeats[i]));
    if (!std::isfinite(weight) || weight < 0) broken(path, fmt::format("dataset '/weights': {} is no weight", weight));
    num_captions += extras.caption_counts[i];
  }
  return num_captions;
}

void check_index(const std::filesystem::path& path, const Hdf5Reader& file, const Index& index, uint64_t image_bytes,
                 uint64_t mask_bytes) {
  if (shard_layout::index_checksum(index) != file.read_number_attribute("index_checksum"))
    broken(path, "its index: the checksum differs");
  const uint64_t count = index.image_checksums.size();
  if (count == 0) broken(path, "its index: it has no samples");
  check_offsets(path, "image_offsets", index.image_offsets, count, image_bytes);
  if (index.captions.empty() || index.file_names.empty()) broken(path, "its index: a text is missing");
  const uint64_t num_captions = index.extras ? check_extras(path, *index.extras, count, mask_bytes) : count;
  check_offsets(path, "caption_offsets", index.caption_offsets, num_captions, index.captions.size() - 1);
  check_offsets(path, "file_name_offsets", index.file_name_offsets, count, index.file_names.size() - 1);
  if (index.image_sizes.size() != 2 * count) broken(path, "dataset '/image_sizes': expected two numbers a sample");
  for (const uint64_t side : index.image_sizes)
    if (side == 0 || side >= kMaxSide) broken(path, fmt::format("dataset '/image_sizes': {} is no side", side));
}

std::vector<std::string> cut(const std::filesystem::path& path, const std::string& name,
                             const std::vector<uint8_t>& blob, const std::vector<uint64_t>& offsets) {
  const std::string_view text(reinterpret_cast<const char*>(blob.data()), blob.size());
  std::vector<std::string> pieces;
  pieces.reserve(offsets.size() - 1);
  for (size_t i = 0; i + 1 < offsets.size(); ++i) {
    pieces.emplace_back(text.substr(offsets[i], offsets[i + 1] - offsets[i]));
    if (!is_valid_utf8(pieces.back())) broken(path, fmt::format("dataset '/{}', sample {}: it isn't UTF-8", name, i));
  }
  return pieces;
}

}  // namespace

struct ShardReader::Impl {
  explicit Impl(const std::filesystem::path& file_path) : path(file_path), file(file_path) {}
  std::filesystem::path path;
  PatientFile file;
  uint64_t images_offset = 0, masks_offset = 0, index_checksum = 0;
  std::vector<uint64_t> image_offsets, image_checksums, image_sizes;
  std::vector<std::string> captions, file_names;
  std::optional<shard_layout::Extras> extras;
  std::vector<uint64_t> first_caption;  // of each sample; only with extras

  void read_index_datasets();
  /// Bytes [start, start + count) of the file, which belong to sample `at`; `what` of it, for messages.
  std::vector<uint8_t> read(size_t at, const char* what, uint64_t start, uint64_t count, uint64_t checksum) const;
  void check(int64_t i) const {
    LORASHARD_CHECK(i >= 0 && i < static_cast<int64_t>(image_checksums.size()), "sample {} of {} in '{}'", i,
                    image_checksums.size(), path.string());
  }
};

void ShardReader::Impl::read_index_datasets() {
  const Hdf5Reader hdf5(path,
                        {"images", "image_offsets", "image_checksums", "image_sizes", "caption_offsets", "captions",
                         "file_name_offsets", "file_names"},
                        {"caption_counts", "repeats", "weights", "mask_offsets", "mask_checksums", "masks"});
  if (hdf5.read_string_attribute("format") != shard_layout::kFormat) broken(path, "attribute 'format': another format");
  const uint64_t version = hdf5.read_number_attribute("version");
  const uint64_t expected = hdf5.has_more() ? shard_layout::kVersionWithExtras : shard_layout::kVersion;
  if (version != expected) broken(path, fmt::format("attribute 'version': expected {}, found {}", expected, version));
  const FileExtent images = hdf5.find_contiguous("images");
  const FileExtent masks = hdf5.has_more() ? hdf5.find_contiguous("masks") : FileExtent{};
  Index index = read_index(hdf5);
  check_index(path, hdf5, index, images.bytes, masks.bytes);

  index_checksum = hdf5.read_number_attribute("index_checksum");  // check_index() has compared it
  images_offset = images.offset;
  masks_offset = masks.offset;
  if (index.extras) {
    const std::vector<uint64_t>& counts = index.extras->caption_counts;
    first_caption.resize(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), first_caption.begin(), uint64_t{0});
  }
  extras = std::move(index.extras);
  captions = cut(path, "captions", index.captions, index.caption_offsets);
  file_names = cut(path, "file_names", index.file_names, index.file_name_offsets);
  image_offsets = std::move(index.image_offsets);
  image_checksums = std::move(index.image_checksums);
  image_sizes = std::move(index.image_sizes);
}

ShardReader::ShardReader(const std::filesystem::path& path) {
  try_patiently([&] {
    impl_ = std::make_unique<Impl>(path);
    impl_->read_index_datasets();
  });
}

ShardReader::~ShardReader() = default;
ShardReader::ShardReader(ShardReader&&) noexcept = default;

int64_t ShardReader::num_samples() const { return static_cast<int64_t>(impl_->image_checksums.size()); }

uint64_t ShardReader::index_checksum() const { return impl_->index_checksum; }

const std::string& ShardReader::file_name(int64_t i) const {
  impl_->check(i);
  return impl_->file_names[static_cast<size_t>(i)];
}

std::span<const std::string> ShardReader::captions(int64_t i) const {
  impl_->check(i);
  const auto at = static_cast<size_t>(i);
  if (!impl_->extras) return {&impl_->captions[at], 1};
  return {&impl_->captions[impl_->first_caption[at]], impl_->extras->caption_counts[at]};
}

double ShardReader::weight(int64_t i) const {
  impl_->check(i);
  return impl_->extras ? std::bit_cast<double>(impl_->extras->weights[static_cast<size_t>(i)]) : 1.0;
}

int64_t ShardReader::repeats(int64_t i) const {
  impl_->check(i);
  return impl_->extras ? static_cast<int64_t>(impl_->extras->repeats[static_cast<size_t>(i)]) : 1;
}

ImageSize ShardReader::size(int64_t i) const {
  impl_->check(i);
  const size_t at = static_cast<size_t>(i) * 2;
  return {static_cast<int64_t>(impl_->image_sizes[at]), static_cast<int64_t>(impl_->image_sizes[at + 1])};
}

std::vector<uint8_t> ShardReader::read_image(int64_t i) const {
  impl_->check(i);
  const auto at = static_cast<size_t>(i);
  return impl_->read(at, "", impl_->images_offset + impl_->image_offsets[at],
                     impl_->image_offsets[at + 1] - impl_->image_offsets[at], impl_->image_checksums[at]);
}

std::vector<uint8_t> ShardReader::read_mask(int64_t i) const {
  impl_->check(i);
  if (!impl_->extras) return {};
  const shard_layout::Extras& extras = *impl_->extras;
  const auto at = static_cast<size_t>(i);
  return impl_->read(at, "the mask of ", impl_->masks_offset + extras.mask_offsets[at],
                     extras.mask_offsets[at + 1] - extras.mask_offsets[at], extras.mask_checksums[at]);
}

std::vector<uint8_t> ShardReader::Impl::read(size_t at, const char* what, uint64_t start, uint64_t count,
                                             uint64_t checksum) const {
  const auto where = [&] {
    return fmt::format("reading shard '{}', {}sample {} ('{}')", path.string(), what, at, file_names[at]);
  };
  std::vector<uint8_t> bytes(count);
  size_t found = 0;
  try {
    found = file.read(bytes.data(), bytes.size(), start);
  } catch (const Error& error) {
    throw Error(error.kind(), fmt::format("{}: {}", where(), error.message()), error.hint(), error.os_error());
  }
  if (found < bytes.size())
    throw Error(ErrorKind::bad_data,
                fmt::format("{}: expected {} bytes, found {}: the file is cut short", where(), bytes.size(), found),
                "pack the images again");
  if (shard_layout::checksum(bytes.data(), bytes.size()) != checksum)
    throw Error(ErrorKind::bad_data, fmt::format("{}: the checksum of its bytes differs", where()),
                "the file was damaged after it was written: pack the images again, and look at the disk");
  return bytes;
}

}  // namespace lorashard
