#include "data/parquet_source.h"

#include <algorithm>
#include <cctype>
#include <iterator>
#include <string_view>
#include <utility>

#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxTextBytes = size_t{1} << 20;

bool has_parquet_name(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension == ".parquet";
}

/// Links are followed: in the cache of huggingface_hub every file is one.
std::vector<std::string> parquet_names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code ignored;
  try {
    for (const auto& entry : fs::directory_iterator(folder))
      if (has_parquet_name(entry.path()) && entry.is_regular_file(ignored) && !entry.path().filename().string().starts_with('.'))
        names.push_back(entry.path().filename().string());
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::io, fmt::format("listing '{}': {}", folder.string(), error.code().message()));
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// The files of a folder, relative to it: its own, else those of data/.
std::vector<std::string> files_of(const fs::path& folder) {
  std::vector<std::string> names = parquet_names_in(folder);
  if (names.empty() && fs::is_directory(folder / "data")) {
    names = parquet_names_in(folder / "data");
    for (std::string& name : names) name.insert(0, "data/");
  }
  return names;
}

/// "train-00000-of-00002.parquet", "train.parquet".
bool is_train(const std::string& name) {
  const std::string file = fs::path(name).filename().string();
  return file.starts_with("train") && std::string_view("-._").find(file[5]) != std::string_view::npos;
}

/// The files that are taken, relative to `source`; the others go to `left_out`.
std::vector<std::string> choose_files(const fs::path& source, std::vector<LeftOut>* left_out) {
  if (!fs::is_directory(source)) return {""};
  std::vector<std::string> names = files_of(source);
  if (names.empty())
    throw Error(ErrorKind::usage, fmt::format("listing '{}': expected *.parquet files in it or in its data/, found none", source.string()));
  if (std::any_of(names.begin(), names.end(), is_train)) {
    const auto others = std::stable_partition(names.begin(), names.end(), is_train);
    for (auto name = others; name != names.end(); ++name) left_out->push_back({*name, "it is of another split than train"});
    names.erase(others, names.end());
  }
  log::info("'{}': {} parquet {}: '{}'{}", source.string(), names.size(), names.size() == 1 ? "file" : "files", names.front(),
            names.size() == 1 ? "" : fmt::format(" to '{}'", names.back()));
  return names;
}

MetadataColumns columns_of(const ImageFolderOptions& options) {
  const bool is_default = options.image_column == ImageFolderOptions().image_column;
  const bool no_captions = options.captions == CaptionSource::none;
  return {.image = is_default ? "image" : options.image_column,
          .caption = no_captions ? "" : options.caption_column,
          .mask = options.mask_column,
          .weight = options.weight_column,
          .repeats = options.repeats_column};
}

/// Takes what was read of a row.
class RowTaker {
 public:
  RowTaker(const fs::path& path, std::string name, const MetadataColumns& columns, const ImageFolderOptions& options, ImageFolder* folder)
      : path_(path), name_(std::move(name)), columns_(columns), options_(options), folder_(folder) {}

  void take(ParquetRow row) {
    SourceImage image{.path = path_, .file_name = std::move(row.name), .caption = "", .row = row.row, .row_group = row.row_group};
    check_text(image.file_name, columns_.image, row);
    if (image.file_name.empty()) image.file_name = fmt::format("{}:{}", name_, row.row);
    if (!columns_.caption.empty()) take_captions(row, &image);
    if (row.weight) {
      check_number(why_no_weight(*row.weight), columns_.weight, row);
      image.weight = *row.weight;
    }
    if (row.repeats) {
      check_number(why_no_repeats(*row.repeats), columns_.repeats, row);
      image.repeats = static_cast<int64_t>(*row.repeats);
    }
    if (!columns_.caption.empty() && image.caption.empty() && !options_.allow_missing_captions)
      folder_->left_out.push_back({place_in_parquet(image), fmt::format("it has no caption in the column '{}'", columns_.caption)});
    else
      folder_->images.push_back(std::move(image));
  }

 private:
  [[noreturn]] void broken(const ParquetRow& row, const std::string& column, const std::string& what, const std::string& hint = "") const {
    throw Error(ErrorKind::bad_data, fmt::format("reading '{}', row group {}, row {}: the column '{}': {}", path_.string(), row.row_group,
                                                 row.row, column, what), hint);
  }

  void check_text(const std::string& text, const std::string& column, const ParquetRow& row) const {
    if (text.find('\0') != std::string::npos) broken(row, column, "found a zero byte in the text");
    if (text.size() > kMaxTextBytes)
      broken(row, column, fmt::format("expected at most {} bytes of text, found {}", kMaxTextBytes, text.size()));
  }

  void check_number(const std::string& wrong, const std::string& column, const ParquetRow& row) const {
    if (!wrong.empty()) broken(row, column, wrong);
  }

  /// The first that isn't empty is the caption, the others that aren't its more_captions.
  void take_captions(ParquetRow& row, SourceImage* image) const {
    if (!row.captions && !options_.allow_missing_captions)
      broken(row, columns_.caption, "expected a caption, found null", "--allow-missing-captions takes such pictures with an empty one");
    std::vector<std::string> captions = row.captions.value_or(std::vector<std::string>());
    std::erase(captions, "");
    for (const std::string& caption : captions) check_text(caption, columns_.caption, row);
    if (captions.empty()) return;
    image->caption = std::move(captions.front());
    image->more_captions.assign(std::make_move_iterator(captions.begin() + 1), std::make_move_iterator(captions.end()));
  }

  const fs::path& path_;
  const std::string name_;
  const MetadataColumns& columns_;
  const ImageFolderOptions& options_;
  ImageFolder* folder_;
};

}  // namespace

bool is_parquet_source(const fs::path& source, const ImageFolderOptions& options) {
  std::error_code none_there;
  if (options.captions == CaptionSource::parquet) return fs::exists(source, none_there);
  if (fs::is_regular_file(source, none_there)) return has_parquet_name(source);
  const bool may_be = !options.captions || options.captions == CaptionSource::none;
  if (!may_be || !fs::is_directory(source, none_there) || files_of(source).empty()) return false;
  const std::optional<CaptionSource> of_pictures = captions_of_pictures_in(source);
  return !of_pictures || (!options.captions && of_pictures == CaptionSource::none);
}

ImageFolder list_parquet(const fs::path& source, const ImageFolderOptions& options) {
  if (options.captions && options.captions != CaptionSource::none && options.captions != CaptionSource::parquet)
    throw Error(ErrorKind::usage, fmt::format("reading '{}': expected --captions parquet or none, found {}", source.string(),
                                              to_string(*options.captions)),
                "the captions of parquet files are in a column of theirs: --caption-column");
  const MetadataColumns columns = columns_of(options);
  ImageFolder folder;
  folder.caption_source = options.captions.value_or(CaptionSource::parquet);
  for (const std::string& name : choose_files(source, &folder.left_out)) {
    const fs::path path = fs::absolute(name.empty() ? source : source / name);
    RowTaker taker(path, name.empty() ? path.filename().string() : name, columns, options, &folder);
    const auto reader = parquet_library().open(path, columns, ParquetPart::texts);
    for (ParquetRow row; reader->next(row);) taker.take(std::move(row));
  }
  require_pictures(folder, source);
  return folder;
}

ParquetPictures::ParquetPictures(const std::vector<SourceImage>& images, const ImageFolderOptions& options)
    : images_(images), columns_(columns_of(options)) {}

ParquetPicture ParquetPictures::take(size_t i) {
  const std::lock_guard lock(mutex_);
  while (next_ <= i) {
    if (broken_ != nullptr) std::rethrow_exception(broken_);
    try {
      ready_.emplace(next_, read_next());
    } catch (...) {
      broken_ = std::current_exception();
      throw;
    }
    ++next_;
  }
  return std::move(ready_.extract(i).mapped());
}

ParquetPicture ParquetPictures::read_next() {
  const SourceImage& image = images_[next_];
  if (open_path_ != image.path) {
    reader_ = parquet_library().open(image.path, columns_, ParquetPart::pictures);
    open_path_ = image.path;
  }
  ParquetRow row;
  do {
    if (!reader_->next(row))
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}': expected a row {}, found none", image.path.string(), image.row),
                  "it was changed while it was read");
  } while (row.row < image.row);
  return {std::move(row.image), std::move(row.mask)};
}

std::string place_in_parquet(const SourceImage& image) {
  return fmt::format("{}, row group {}, row {}", image.path.filename().string(), image.row_group, image.row);
}

}  // namespace lorashard
