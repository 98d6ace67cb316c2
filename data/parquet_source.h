// Captioned pictures in parquet files, as Hugging Face's datasets have them: a column of pictures (struct {bytes: binary, path: string}
// or binary) and one of captions (string, or list of strings), perhaps masks, weights and repeats.
//
// A source is one file, or a folder with *.parquet files in it, else in its data/; they are read in the bytewise order of their names.
// Of files whose names begin with "train" alone these are taken: the others are other splits. Rows keep their order. A row is named by
// the path beside its picture, which is only a name: never followed, and not unique; without one, by its file and number.
#pragma once
#include <cstdint>
#include <exception>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "data/image_folder.h"
#include "data/parquet_library.h"

namespace lorashard {

/// Whether `source` is packed as parquet: a .parquet file, or a folder with such files in which no pictures with captions lie, unless
/// options.captions says what to read. False where nothing is there.
bool is_parquet_source(const std::filesystem::path& source, const ImageFolderOptions& options);

/// Reads everything but the pictures. Rows with an empty caption are left out as those of a table are. Throws Error(usage) when there
/// is no file or row to take, what ParquetLibrary::open() and ParquetReader::next() throw, and Error(bad_data) with file, row group, row and
/// column for a caption that is null (unless options.allow_missing_captions) or holds a zero byte, and for weights and repeats out of range.
ImageFolder list_parquet(const std::filesystem::path& source, const ImageFolderOptions& options);

struct ParquetPicture {
  std::optional<std::vector<uint8_t>> image, mask;  ///< still encoded; nothing where null or not asked for
};

/// The pictures of what list_parquet() listed, read once, in order, for threads that decode them.
class ParquetPictures {
 public:
  /// `images` must outlive it.
  ParquetPictures(const std::vector<SourceImage>& images, const ImageFolderOptions& options);

  /// That of images[i], once for each i. Threads may come out of order; what lies between is kept for them. Throws as
  /// ParquetReader::next() does, and then again for every later picture. Thread-safe.
  ParquetPicture take(size_t i);

 private:
  ParquetPicture read_next();

  const std::vector<SourceImage>& images_;
  const MetadataColumns columns_;
  std::mutex mutex_;
  std::map<size_t, ParquetPicture> ready_;
  size_t next_ = 0;  // of images_, to be read
  std::filesystem::path open_path_;
  std::unique_ptr<ParquetReader> reader_;
  std::exception_ptr broken_;
};

/// "train-00000-of-00001.parquet, row group 0, row 17": where the picture of a parquet file is, for messages.
std::string place_in_parquet(const SourceImage& image);

}  // namespace lorashard
