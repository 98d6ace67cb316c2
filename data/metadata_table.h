// The tables that name pictures and their captions: metadata.jsonl (an object a line) and metadata.csv (RFC 4180 with a
// header). Parsed strictly: a table that is half understood gives pictures the wrong captions.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lorashard {

struct MetadataRow {
  std::string file_name;  ///< as written; not yet checked
  std::string caption;    ///< UTF-8; empty when the row has none
  int64_t line = 0;       ///< from 1
};

/// The rows of `path`, in order. Throws Error(bad_data) with the line for text that isn't UTF-8, a line above 1 MiB, a
/// row without `image_column`, a caption that isn't a text, and a table in which no row has `caption_column`.
std::vector<MetadataRow> read_metadata_jsonl(const std::filesystem::path& path, const std::string& image_column,
                                             const std::string& caption_column);
std::vector<MetadataRow> read_metadata_csv(const std::filesystem::path& path, const std::string& image_column,
                                           const std::string& caption_column);

}  // namespace lorashard
