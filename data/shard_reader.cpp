#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <string_view>
#include <utility>

#include "data/hdf5_file.h"
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
  return index;
}

void check_index(const std::filesystem::path& path, const Hdf5Reader& file, const Index& index, uint64_t image_bytes) {
  if (shard_layout::index_checksum(index) != file.read_number_attribute("index_checksum"))
    broken(path, "its index: the checksum differs");
  const uint64_t count = index.image_checksums.size();
  if (count == 0) broken(path, "its index: it has no samples");
  check_offsets(path, "image_offsets", index.image_offsets, count, image_bytes);
  if (index.captions.empty() || index.file_names.empty()) broken(path, "its index: a text is missing");
  check_offsets(path, "caption_offsets", index.caption_offsets, count, index.captions.size() - 1);
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
  std::filesystem::path path;
  int fd = -1;
  uint64_t images_offset = 0;
  std::vector<uint64_t> image_offsets, image_checksums, image_sizes;
  std::vector<std::string> captions, file_names;

  ~Impl() {
    if (fd >= 0) close(fd);
  }
  void check(int64_t i) const {
    LORASHARD_CHECK(i >= 0 && i < static_cast<int64_t>(image_checksums.size()), "sample {} of {} in '{}'", i,
                    image_checksums.size(), path.string());
  }
};

ShardReader::ShardReader(const std::filesystem::path& path) : impl_(std::make_unique<Impl>()) {
  const Hdf5Reader file(path, {"images", "image_offsets", "image_checksums", "image_sizes", "caption_offsets",
                               "captions", "file_name_offsets", "file_names"});
  if (file.read_string_attribute("format") != shard_layout::kFormat) broken(path, "attribute 'format': another format");
  const uint64_t version = file.read_number_attribute("version");
  if (version != shard_layout::kVersion)
    broken(path, fmt::format("attribute 'version': expected {}, found {}", shard_layout::kVersion, version));
  const FileExtent images = file.find_contiguous("images");
  Index index = read_index(file);
  check_index(path, file, index, images.bytes);

  impl_->path = path;
  impl_->images_offset = images.offset;
  impl_->captions = cut(path, "captions", index.captions, index.caption_offsets);
  impl_->file_names = cut(path, "file_names", index.file_names, index.file_name_offsets);
  impl_->image_offsets = std::move(index.image_offsets);
  impl_->image_checksums = std::move(index.image_checksums);
  impl_->image_sizes = std::move(index.image_sizes);
  impl_->fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (impl_->fd < 0) throw errno_error(fmt::format("opening shard '{}'", path.string()), true);
}

ShardReader::~ShardReader() = default;
ShardReader::ShardReader(ShardReader&&) noexcept = default;

int64_t ShardReader::num_samples() const { return static_cast<int64_t>(impl_->image_checksums.size()); }

const std::string& ShardReader::file_name(int64_t i) const {
  impl_->check(i);
  return impl_->file_names[static_cast<size_t>(i)];
}

const std::string& ShardReader::caption(int64_t i) const {
  impl_->check(i);
  return impl_->captions[static_cast<size_t>(i)];
}

ImageSize ShardReader::size(int64_t i) const {
  impl_->check(i);
  const size_t at = static_cast<size_t>(i) * 2;
  return {static_cast<int64_t>(impl_->image_sizes[at]), static_cast<int64_t>(impl_->image_sizes[at + 1])};
}

std::vector<uint8_t> ShardReader::read_image(int64_t i) const {
  impl_->check(i);
  const auto at = static_cast<size_t>(i);
  const auto where = [&] {
    return fmt::format("reading shard '{}', sample {} ('{}')", impl_->path.string(), i, impl_->file_names[at]);
  };
  std::vector<uint8_t> bytes(impl_->image_offsets[at + 1] - impl_->image_offsets[at]);
  const uint64_t start = impl_->images_offset + impl_->image_offsets[at];
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t n = pread(impl_->fd, bytes.data() + done, bytes.size() - done, static_cast<off_t>(start + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw errno_error(where());
    if (n == 0)
      throw Error(ErrorKind::bad_data,
                  fmt::format("{}: expected {} bytes, found {}: the file is cut short", where(), bytes.size(), done),
                  "pack the images again");
    done += static_cast<size_t>(n);
  }
  if (shard_layout::checksum(bytes.data(), bytes.size()) != impl_->image_checksums[at])
    throw Error(ErrorKind::bad_data, fmt::format("{}: the checksum of its bytes differs", where()),
                "the file was damaged after it was written: pack the images again, and look at the disk");
  return bytes;
}

}  // namespace lorashard
