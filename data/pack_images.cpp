// pack_images(): threads read and decode pictures ahead, in a window of bounded length; one thread takes them in the
// source's order and writes shards. So neither the bytes nor the first error depend on the number of threads.
#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "data/image.h"
#include "data/image_write.h"
#include "data/pack.h"
#include "data/pack_index.h"
#include "data/parquet_source.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxPictureFileBytes = uint64_t{256} << 20;

/// A picture read and decoded once, or why that failed.
struct CheckedImage {
  ShardSample sample;
  std::exception_ptr error;
  bool source_failed = false;  ///< the error isn't of this picture alone: it can't be skipped
};

/// A picture and its mask as they are; no mask when it has none.
struct EncodedPicture {
  std::vector<uint8_t> image, mask;
};

std::vector<uint8_t> read_bytes(const fs::path& path) {
  const std::string bytes = read_file(path, kMaxPictureFileBytes);
  return {bytes.begin(), bytes.end()};
}

/// How messages name a picture: a row of a parquet file has no name of its own that finds it.
std::string name_of(const SourceImage& source) { return source.row < 0 ? source.file_name : place_in_parquet(source); }

EncodedPicture read_picture(const SourceImage& source) {
  EncodedPicture picture{.image = read_bytes(source.path), .mask = {}};
  if (!source.mask.empty()) picture.mask = read_bytes(source.mask);
  return picture;
}

/// The same of a row of a parquet file.
EncodedPicture take_picture(const SourceImage& source, ParquetPicture row) {
  if (!row.image || row.image->empty())
    throw Error(ErrorKind::bad_data, fmt::format("reading '{}': expected a picture, found null", name_of(source)),
                "the bytes of a picture must be in the parquet file: a path beside them is not followed");
  EncodedPicture picture{.image = std::move(*row.image), .mask = row.mask ? std::move(*row.mask) : std::vector<uint8_t>()};
  for (const std::vector<uint8_t>* bytes : {&picture.image, &picture.mask})
    if (bytes->size() > kMaxPictureFileBytes)
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}': expected at most {} bytes, found {}", name_of(source),
                                                   kMaxPictureFileBytes, bytes->size()));
  return picture;
}

/// The encoded mask of a picture of `size`; empty when it has none.
std::vector<uint8_t> checked_mask(const SourceImage& source, EncodedPicture& picture, ImageSize size, bool alpha_masks) {
  if (!picture.mask.empty()) {
    const bool is_file = source.row < 0;
    const Image decoded = decode_image(picture.mask, is_file ? source.mask.filename().string() : "the mask of " + name_of(source));
    if (decoded.height != size.height || decoded.width != size.width)
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading the mask {}of '{}': expected {} x {} pixels as the picture has, found {} x {}",
                              is_file ? fmt::format("'{}' ", source.mask.string()) : "", name_of(source), size.width, size.height,
                              decoded.width, decoded.height),
                  "a mask is drawn over its picture: white where the loss counts");
    return std::move(picture.mask);
  }
  const Image alpha = alpha_masks ? decode_alpha(picture.image, name_of(source)) : Image{};
  const bool opaque = std::all_of(alpha.rgb.begin(), alpha.rgb.end(), [](uint8_t value) { return value == 255; });
  return opaque ? std::vector<uint8_t>() : encode_png(alpha);
}

/// images[i], out of `parquet` where its pictures lie there.
CheckedImage check_image(const std::vector<SourceImage>& images, size_t i, ParquetPictures* parquet, bool alpha_masks) {
  const SourceImage& source = images[i];
  CheckedImage checked;
  ParquetPicture row;
  try {
    if (parquet != nullptr) row = parquet->take(i);
  } catch (...) {
    checked.error = std::current_exception();
    checked.source_failed = true;
    return checked;
  }
  try {
    EncodedPicture picture = parquet != nullptr ? take_picture(source, std::move(row)) : read_picture(source);
    const Image image = decode_image(picture.image, name_of(source));
    checked.sample.size = {image.height, image.width};
    checked.sample.file_name = source.file_name;
    checked.sample.caption = source.caption;
    checked.sample.more_captions = source.more_captions;
    checked.sample.weight = source.weight;
    checked.sample.repeats = source.repeats;
    checked.sample.mask_bytes = checked_mask(source, picture, checked.sample.size, alpha_masks);
    checked.sample.image_bytes = std::move(picture.image);
  } catch (...) {
    checked.error = std::current_exception();
  }
  return checked;
}

class ImageChecker {
 public:
  /// `images` and `parquet`, which may be null, must outlive it.
  ImageChecker(const std::vector<SourceImage>& images, ParquetPictures* parquet, int num_threads, bool alpha_masks)
      : images_(images), parquet_(parquet), alpha_masks_(alpha_masks), window_(2 * static_cast<size_t>(num_threads)) {
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this](const std::stop_token& stop) { work(stop); });
  }
  ~ImageChecker() {
    for (std::jthread& thread : threads_) thread.request_stop();
  }

  /// The next picture, in the order of `images`; there must be one.
  CheckedImage next() {
    std::unique_lock lock(mutex_);
    std::optional<CheckedImage>& place = window_[given_ % window_.size()];
    changed_.wait(lock, [&] { return place.has_value(); });
    CheckedImage checked = std::move(*place);
    place.reset();
    ++given_;
    changed_.notify_all();
    return checked;
  }

 private:
  void work(const std::stop_token& stop) {
    std::unique_lock lock(mutex_);
    while (true) {
      const auto has_work = [&] { return taken_ == images_.size() || taken_ < given_ + window_.size(); };
      if (!changed_.wait(lock, stop, has_work) || stop.stop_requested() || taken_ == images_.size()) return;
      const size_t i = taken_++;
      lock.unlock();
      CheckedImage checked = check_image(images_, i, parquet_, alpha_masks_);
      lock.lock();
      window_[i % window_.size()] = std::move(checked);
      changed_.notify_all();
    }
  }

  const std::vector<SourceImage>& images_;
  ParquetPictures* parquet_;
  const bool alpha_masks_;
  std::mutex mutex_;
  std::condition_variable_any changed_;
  std::vector<std::optional<CheckedImage>> window_;
  size_t taken_ = 0, given_ = 0;
  std::vector<std::jthread> threads_;  // last: joined before the rest goes
};

/// The folder a pack is made in. Unless keep() is called, everything that was put there goes away again.
class OutputFolder {
 public:
  OutputFolder(const fs::path& path, bool overwrite) : path_(path) {
    std::error_code error;
    made_ = fs::create_directories(path, error);
    if (error) throw Error(ErrorKind::io, fmt::format("making the folder '{}': {}", path.string(), error.message()));
    lock();
    try {
      clear(overwrite);
    } catch (...) {
      close(fd_);
      throw;
    }
  }
  ~OutputFolder() {
    if (!kept_) remove_own_files();
    std::error_code ignored;
    if (!kept_ && made_) fs::remove(path_, ignored);
    close(fd_);
  }
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  void keep() { kept_ = true; }

 private:
  static bool is_own(const std::string& name) { return name.starts_with("shard-") || name.starts_with(kPackIndexName); }

  void lock() {
    fd_ = open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd_ < 0) throw errno_error(fmt::format("opening the folder '{}'", path_.string()));
    if (flock(fd_, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;  // some file systems have no locks
    close(fd_);
    throw Error(ErrorKind::usage, fmt::format("packing into '{}': another process is packing into it", path_.string()));
  }

  void clear(bool overwrite) {
    int64_t num_own = 0;
    for (const auto& entry : fs::directory_iterator(path_)) {
      const std::string name = entry.path().filename().string();
      if (!is_own(name))
        throw Error(ErrorKind::usage,
                    fmt::format("packing into '{}': expected an empty folder, found '{}' in it", path_.string(), name),
                    "give --out a folder of its own");
      ++num_own;
    }
    if (fs::exists(path_ / kPackIndexName) && !overwrite)
      throw Error(ErrorKind::usage, fmt::format("packing into '{}': there is a pack in it already", path_.string()),
                  "replace it with --overwrite, or give --out another folder");
    if (num_own > 0) log::info("removing {} files of an earlier pack from '{}'", num_own, path_.string());
    remove_own_files();
  }

  void remove_own_files() {
    std::error_code ignored;
    fs::remove(path_ / kPackIndexName, ignored);  // first: without it the rest is no pack
    std::vector<fs::path> own;
    for (const auto& entry : fs::directory_iterator(path_, ignored))
      if (is_own(entry.path().filename().string())) own.push_back(entry.path());
    for (const fs::path& path : own) fs::remove(path, ignored);
  }

  fs::path path_;
  int fd_ = -1;
  bool made_ = false, kept_ = false;
};

/// Collects samples and writes a shard whenever there are enough.
class PackWriter {
 public:
  PackWriter(const fs::path& folder, int64_t shard_bytes) : folder_(folder), shard_bytes_(shard_bytes) {}

  void add(ShardSample sample) {
    pending_bytes_ += sample.image_bytes.size();
    index_.num_captions += !sample.caption.empty();
    pending_.push_back(std::move(sample));
    if (pending_bytes_ >= static_cast<uint64_t>(shard_bytes_)) write_pending();
  }

  PackIndex finish(const std::string& kind, const std::string& captions) {
    if (!pending_.empty()) write_pending();
    index_.kind = kind;
    index_.captions = captions;
    write_durably(folder_ / kPackIndexName, to_json(index_));
    return index_;
  }

  int64_t num_samples() const { return index_.num_samples + static_cast<int64_t>(pending_.size()); }
  uint64_t image_bytes() const { return index_.image_bytes + pending_bytes_; }

 private:
  void write_pending() {
    const std::string file = shard_file_name(static_cast<int64_t>(index_.shards.size()));
    const uint64_t index_checksum = write_shard(folder_ / file, pending_);
    index_.shards.push_back({file, static_cast<int64_t>(pending_.size()), pending_bytes_, fs::file_size(folder_ / file),
                             sha256_file(folder_ / file), fmt::format("{:016x}", index_checksum)});
    index_.num_samples += static_cast<int64_t>(pending_.size());
    index_.image_bytes += pending_bytes_;
    pending_.clear();
    pending_bytes_ = 0;
  }

  fs::path folder_;
  int64_t shard_bytes_;
  std::vector<ShardSample> pending_;
  uint64_t pending_bytes_ = 0;
  PackIndex index_;
};

/// What is wrong with a picture that may be skipped; any other error is thrown on.
std::string reason_to_skip(const CheckedImage& checked, OnBadImage on_bad_image) {
  try {
    std::rethrow_exception(checked.error);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::bad_data || checked.source_failed) throw;
    if (on_bad_image == OnBadImage::stop)
      throw Error(error.kind(), error.message(), error.hint() + "; or skip such pictures: --on-bad-image skip, in a recipe data.on_bad_image = \"skip\"");
    return error.message();
  }
}

int num_threads_for(const PackOptions& options) {
  if (options.num_threads > 0) return options.num_threads;
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

/// Packs the pictures in order; fills the report's counts of skipped ones.
void pack_in_order(const std::vector<SourceImage>& images, ParquetPictures* parquet, const PackOptions& options, PackWriter* writer,
                   PackReport* report) {
  ImageChecker checker(images, parquet, num_threads_for(options), options.alpha_masks);
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < images.size(); ++i) {
    if (options.max_samples > 0 && writer->num_samples() == options.max_samples) break;
    CheckedImage checked = checker.next();
    if (checked.error != nullptr) {
      std::string reason = reason_to_skip(checked, options.on_bad_image);
      log::warning("skipping a picture: {}", reason);
      report->left_out.push_back({name_of(images[i]), std::move(reason)});
      ++report->num_skipped;
    } else {
      report->num_masks += !checked.sample.mask_bytes.empty();
      report->num_images_in_epoch += checked.sample.repeats;
      writer->add(std::move(checked.sample));
    }
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    log::status(fmt::format("packing: {} of {} pictures, {:.1f} MB, {:.0f} pictures/s", i + 1, images.size(),
                            static_cast<double>(writer->image_bytes()) / 1e6,
                            static_cast<double>(i + 1) / std::max(seconds.count(), 1e-3)));
  }
}

}  // namespace

ImageFolder list_pictures(const fs::path& source, const ImageFolderOptions& options) {
  return is_parquet_source(source, options) ? list_parquet(source, options) : list_image_folder(source, options);
}

PackReport pack_images(const fs::path& source, const fs::path& out, const PackOptions& options) {
  if (options.shard_bytes < 1 || options.max_samples < 0 || options.num_threads < 0)
    throw Error(ErrorKind::usage,
                fmt::format("packing '{}': expected at least 1 byte a shard and no negative count, found "
                            "{} bytes, {} samples, {} threads",
                            source.string(), options.shard_bytes, options.max_samples, options.num_threads));
  if (is_pack(source))
    throw Error(ErrorKind::usage, fmt::format("packing '{}': it is a pack already", source.string()),
                "train_data_dir takes it as it is");
  ImageFolder folder = list_pictures(source, options.folder);
  std::optional<ParquetPictures> parquet;
  if (folder.images.front().row >= 0) parquet.emplace(folder.images, options.folder);
  OutputFolder output(out, options.overwrite);
  PackReport report;
  report.left_out = std::move(folder.left_out);
  report.caption_source = folder.caption_source;
  report.num_other_files = folder.num_other_files;
  report.num_longer_caption_files = folder.num_longer_caption_files;
  PackWriter writer(out, options.shard_bytes);
  try {
    pack_in_order(folder.images, parquet ? &*parquet : nullptr, options, &writer, &report);
  } catch (...) {
    log::status("");
    throw;
  }
  log::status("");
  if (writer.num_samples() == 0)
    throw Error(ErrorKind::bad_data, fmt::format("packing '{}': none of its {} pictures can be decoded, '{}' for one",
                                                 source.string(), folder.images.size(), report.left_out.back().reason));
  const PackIndex index = writer.finish(parquet ? "parquet" : "image_folder", to_string(folder.caption_source));
  output.keep();
  report.num_samples = index.num_samples;
  report.num_shards = static_cast<int64_t>(index.shards.size());
  report.num_captions = index.num_captions;
  report.bytes = index.image_bytes;
  return report;
}

}  // namespace lorashard
