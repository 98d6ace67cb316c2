// The tables that name pictures and their captions: metadata.jsonl (an object a line) and metadata.csv (RFC 4180 with a
// header). Parsed strictly: a table that is half understood gives pictures the wrong captions.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace lorashard {

/// Names of columns; an empty one isn't read.
struct MetadataColumns {
  std::string image = "file_name", caption = "text", mask, weight, repeats;
};

struct MetadataRow {
  std::string file_name;  ///< as written; not yet checked
  std::string caption;    ///< UTF-8; empty when the row has none
  int64_t line = 0;       ///< from 1
  std::vector<std::string> more_captions = {};  ///< of a caption that is an array of texts (JSON only)
  std::string mask_file_name = {};              ///< as written; empty when the row has none
  double weight = 1;
  int64_t repeats = 1;
};

/// What is wrong with a picture's weight (a number from 0) or repeats (a whole number from 1); empty when nothing is.
std::string why_no_weight(double value);
std::string why_no_repeats(double value);

/// The rows of `path`, in order. Throws Error(bad_data) with the line for text that isn't UTF-8, a line above 1 MiB, a
/// row without the image's column, a caption that isn't a text, a weight that isn't a number from 0 or repeats that
/// aren't a whole number from 1, and a table in which no row has the caption's column.
std::vector<MetadataRow> read_metadata_jsonl(const std::filesystem::path& path, const MetadataColumns& columns);
std::vector<MetadataRow> read_metadata_csv(const std::filesystem::path& path, const MetadataColumns& columns);

}  // namespace lorashard
