// Where captioned pictures come from: a folder with metadata.jsonl or metadata.csv (file_name, text), with .txt files
// beside the pictures, or with neither. Lists only; decodes nothing.
//
// Pictures are found in sub-folders too; names that begin with '.' and links to folders are passed over. A table
// may lie in any folder: its file names are relative to it. Of a .txt file the first line that isn't blank is the
// caption, without the blanks around it: what follows in the wild is tags, sources and translations.
// A path from a table is never trusted: absolute ones, "..", backslashes, NUL, links that leave the folder, anything
// but regular files, and a file named twice are errors.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lorashard {

struct SourceImage {
  std::filesystem::path path;  ///< absolute; inside the source folder; of a row of a parquet file, that file
  std::string file_name;       ///< relative to the source folder, with '/'; of a row of a parquet file, a name for it
  std::string caption;         ///< UTF-8; empty when it has none
  std::vector<std::string> more_captions = {};  ///< where the source has several
  std::filesystem::path mask = {};              ///< absolute, inside the source folder; empty when it has none
  double weight = 1;
  int64_t repeats = 1;
  int64_t row = -1;   ///< of the parquet file, from 0; -1: the picture is a file of its own
  int row_group = 0;  ///< that the row lies in
};

struct LeftOut {
  std::string file_name;
  std::string reason;
};

enum class CaptionSource {
  metadata_jsonl,
  metadata_csv,
  txt_beside,
  none,
  folder_names,  ///< the name of the folder a picture is in; only when asked for
  parquet,       ///< the caption column of parquet files (data/parquet_source.h)
};

/// "metadata_jsonl" and so on.
std::string to_string(CaptionSource source);
/// Throws Error(usage) naming the allowed words.
CaptionSource parse_caption_source(const std::string& name);

struct ImageFolder {
  std::vector<SourceImage> images;  ///< order of the tables, or of file_name (bytewise) without one
  std::vector<LeftOut> left_out;  ///< pictures without a caption or not in the table, picture formats that aren't read
  CaptionSource caption_source = CaptionSource::none;
  int64_t num_other_files = 0;           ///< files that are no pictures, tables or captions
  int64_t num_longer_caption_files = 0;  ///< .txt files with more lines than the caption
};

struct ImageFolderOptions {
  std::string image_column = "file_name";  ///< of tables; in parquet files this default stands for "image"
  std::string caption_column = "text";
  std::string mask_column = {}, weight_column = {}, repeats_column = {};  ///< of tables; empty: not read
  bool all_caption_lines = false;       ///< each line of a .txt that isn't blank is a caption of its own
  bool allow_missing_captions = false;  ///< keep pictures without a caption (empty caption) beside captioned ones
  std::optional<CaptionSource> captions = std::nullopt;  ///< which source to read; empty: the first that exists
};

/// Where list_image_folder() would take captions from by itself; nullopt where `folder` holds no picture at all. Throws Error(io).
std::optional<CaptionSource> captions_of_pictures_in(const std::filesystem::path& folder);

/// Throws Error(usage) where `listed` has no picture to take, naming `source` and what was left out.
void require_pictures(const ImageFolder& listed, const std::filesystem::path& source);

/// Throws Error(usage) when the folder doesn't exist or holds no picture to take, Error(bad_data) with file and line
/// for a broken table, a path that leaves the folder, a row whose file isn't there, or a caption that isn't UTF-8.
ImageFolder list_image_folder(const std::filesystem::path& folder, const ImageFolderOptions& options = {});

}  // namespace lorashard
