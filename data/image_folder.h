// Where captioned pictures come from: a folder with metadata.jsonl or metadata.csv (file_name, text), with .txt files
// beside the pictures, or with neither. Lists only; decodes nothing.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace lorashard {

struct SourceImage {
  std::filesystem::path path;  ///< absolute; inside the source folder
  std::string file_name;       ///< relative to the source folder, with '/'
  std::string caption;         ///< UTF-8; empty when it has none
};

struct LeftOut {
  std::string file_name;
  std::string reason;
};

enum class CaptionSource { metadata_jsonl, metadata_csv, txt_beside, none };

struct ImageFolder {
  std::vector<SourceImage> images;  ///< order of the table, or of file_name (bytewise) without one
  std::vector<LeftOut> left_out;    ///< rows without a file, files of no known type, pictures without a caption
  CaptionSource caption_source = CaptionSource::none;
};

struct ImageFolderOptions {
  std::string image_column = "file_name";
  std::string caption_column = "text";
  bool allow_missing_captions = false;  ///< keep pictures without a caption (empty caption) beside captioned ones
  std::optional<CaptionSource> captions;  ///< which source to read; empty: the first that exists
};

/// Throws Error(usage) when the folder doesn't exist or holds no picture, Error(bad_data) with file and line for a broken
/// table, a path that leaves the folder, or a caption that isn't UTF-8.
ImageFolder list_image_folder(const std::filesystem::path& folder, const ImageFolderOptions& options = {});

}  // namespace lorashard
