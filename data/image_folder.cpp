#include "data/image_folder.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <iterator>
#include <map>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>

#include "data/metadata_table.h"
#include "data/utf8.h"
#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxCaptionFileBytes = uint64_t{1} << 20;
constexpr std::array<std::string_view, 4> kPictures = {".png", ".jpg", ".jpeg", ".webp"};
constexpr std::array<std::string_view, 9> kOtherPictures = {".bmp",  ".gif",  ".tif", ".tiff", ".avif",
                                                            ".heic", ".heif", ".jxl", ".jp2"};

constexpr std::array<std::pair<CaptionSource, std::string_view>, 6> kCaptionSources = {
    {{CaptionSource::metadata_jsonl, "metadata_jsonl"},
     {CaptionSource::metadata_csv, "metadata_csv"},
     {CaptionSource::txt_beside, "txt_beside"},
     {CaptionSource::folder_names, "folder_names"},
     {CaptionSource::parquet, "parquet"},
     {CaptionSource::none, "none"}}};

/// What lies in the folder, by kind; names are relative to it and sorted bytewise.
struct Found {
  std::vector<std::string> pictures;
  std::vector<std::string> jsonl_tables, csv_tables;
  std::unordered_set<std::string> texts;
  std::vector<LeftOut> left_out;
  int64_t num_other_files = 0;
};

std::string lower_extension(const fs::path& path) {
  std::string extension = path.extension().string();
  for (char& c : extension) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return extension;
}

template <class List>
bool contains(const List& list, std::string_view value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Names go into messages and JSON, which hold UTF-8 only.
std::string printable(std::string name) {
  if (!is_valid_utf8(name))
    for (char& c : name)
      if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  return name;
}

/// Why the file at `path` may not be read as part of `root` (canonical); empty when it may.
std::string why_not_readable(const fs::path& root, const fs::path& path) {
  std::error_code error;
  const fs::path real = fs::canonical(path, error);
  if (error) return "it isn't there";
  if (std::mismatch(root.begin(), root.end(), real.begin(), real.end()).first != root.end())
    return "it is a link that leaves the folder";
  if (!fs::is_regular_file(real, error)) return "it is no regular file";
  return "";
}

void sort_entry(const fs::path& root, const fs::path& path, std::string name, Found* found) {
  const std::string extension = lower_extension(path);
  if (contains(kPictures, extension)) {
    std::string reason = is_valid_utf8(name) ? why_not_readable(root, path) : "its name isn't UTF-8";
    if (reason.empty())
      found->pictures.push_back(std::move(name));
    else
      found->left_out.push_back({printable(name), std::move(reason)});
  } else if (contains(kOtherPictures, extension)) {
    found->left_out.push_back({printable(name), "of this format nothing is read: only PNG, JPEG and WebP"});
  } else if (path.filename() == "metadata.jsonl") {
    found->jsonl_tables.push_back(std::move(name));
  } else if (path.filename() == "metadata.csv") {
    found->csv_tables.push_back(std::move(name));
  } else if (extension == ".txt") {
    found->texts.insert(std::move(name));
  } else {
    ++found->num_other_files;
  }
}

Found walk(const fs::path& root) {
  Found found;
  try {
    for (auto entry = fs::recursive_directory_iterator(root); entry != fs::recursive_directory_iterator(); ++entry) {
      const fs::path& path = entry->path();
      std::string name = path.lexically_relative(root).generic_string();
      if (path.filename().string().starts_with('.')) {
        entry.disable_recursion_pending();
      } else if (entry->is_symlink() && entry->is_directory()) {
        found.left_out.push_back({printable(name), "it is a link to a folder, which isn't followed"});
      } else if (entry->symlink_status().type() != fs::file_type::directory) {
        sort_entry(root, path, std::move(name), &found);
      }
    }
  } catch (const fs::filesystem_error& error) {
    throw Error(ErrorKind::io, fmt::format("listing '{}': {}", error.path1().string(), error.code().message()));
  }
  for (std::vector<std::string>* names : {&found.pictures, &found.jsonl_tables, &found.csv_tables})
    std::sort(names->begin(), names->end());
  return found;
}

std::string text_name(const std::string& picture) { return fs::path(picture).replace_extension(".txt").string(); }

CaptionSource choose_source(const Found& found) {
  if (!found.jsonl_tables.empty()) return CaptionSource::metadata_jsonl;
  if (!found.csv_tables.empty()) return CaptionSource::metadata_csv;
  const bool any_text = std::any_of(found.pictures.begin(), found.pictures.end(),
                                    [&](const std::string& name) { return found.texts.contains(text_name(name)); });
  return any_text ? CaptionSource::txt_beside : CaptionSource::none;
}

/// The path of a table's row relative to `root`, or why it is refused.
std::string safe_name(const fs::path& root, const fs::path& table_folder, const std::string& written,
                      std::string* refusal) {
  const fs::path path(written);
  if (written.empty() || written.find('\0') != std::string::npos)
    *refusal = "it is no file name";
  else if (path.is_absolute())
    *refusal = "it is absolute";
  else if (written.find('\\') != std::string::npos)
    *refusal = "it holds a backslash";
  else if (std::any_of(path.begin(), path.end(), [](const fs::path& part) { return part == ".."; }))
    *refusal = "it holds '..'";
  if (!refusal->empty()) return "";
  const fs::path inside = (table_folder / path).lexically_normal();
  *refusal = why_not_readable(root, root / inside);
  return inside.generic_string();
}

void read_tables(const fs::path& root, const Found& found, const ImageFolderOptions& options, ImageFolder* folder) {
  const bool jsonl = folder->caption_source == CaptionSource::metadata_jsonl;
  const std::vector<std::string>& tables = jsonl ? found.jsonl_tables : found.csv_tables;
  if (tables.empty())
    throw Error(ErrorKind::usage, fmt::format("listing '{}': expected a {} in it, found none", root.string(),
                                              jsonl ? "metadata.jsonl" : "metadata.csv"));
  if (jsonl)
    for (const std::string& name : found.csv_tables)
      folder->left_out.push_back({name, "it isn't read, because there is a metadata.jsonl"});
  std::unordered_map<std::string, std::string> seen;  // file name -> where it was named
  std::unordered_set<std::string> masks;
  const MetadataColumns columns{options.image_column, options.caption_column, options.mask_column,
                                options.weight_column, options.repeats_column};
  for (const std::string& table : tables) {
    const std::string refusal_of_table = why_not_readable(root, root / table);
    if (!refusal_of_table.empty())
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}': {}", (root / table).string(), refusal_of_table));
    const auto read = jsonl ? read_metadata_jsonl : read_metadata_csv;
    for (MetadataRow& row : read(root / table, columns)) {
      const std::string place = fmt::format("'{}', line {}", (root / table).string(), row.line);
      const auto inside = [&](const std::string& written) {
        std::string refusal;
        std::string name = safe_name(root, fs::path(table).parent_path(), written, &refusal);
        if (!refusal.empty())
          throw Error(ErrorKind::bad_data, fmt::format("reading {}: the file '{}': {}", place, written, refusal),
                      "a table names regular files inside the folder, relative to the table");
        return name;
      };
      std::string name = inside(row.file_name);
      const std::string mask = row.mask_file_name.empty() ? "" : inside(row.mask_file_name);
      if (!mask.empty()) masks.insert(mask);
      const auto [first, is_new] = seen.emplace(name, place);
      if (!is_new)
        throw Error(ErrorKind::bad_data, fmt::format("reading {}: the file '{}' was named before, in {}", place,
                                                     row.file_name, first->second));
      if (row.caption.empty() && !options.allow_missing_captions)
        folder->left_out.push_back({std::move(name), fmt::format("it has no caption in {}", table)});
      else
        folder->images.push_back({root / name, name, std::move(row.caption), std::move(row.more_captions),
                                  mask.empty() ? fs::path() : root / mask, row.weight, row.repeats});
    }
  }
  for (const std::string& name : found.pictures)
    if (!seen.contains(name) && !masks.contains(name)) folder->left_out.push_back({name, fmt::format("it isn't in {}", tables.front())});
}

/// The lines that aren't blank, trimmed. Without `all` the first of them, and an empty one where more follow: what
/// these hold is nobody's business.
std::vector<std::string> read_caption_file(const fs::path& path, bool all) {
  constexpr std::string_view kBlanks = " \t\r\v\f";
  const std::string text = read_file(path, kMaxCaptionFileBytes);
  std::vector<std::string> captions;
  int64_t number = 1;
  for (size_t begin = text.starts_with("\xef\xbb\xbf") ? 3 : 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string_view line(text.data() + begin, end - begin);
    begin = end + 1;
    line.remove_prefix(std::min(line.find_first_not_of(kBlanks), line.size()));
    line = line.substr(0, line.find_last_not_of(kBlanks) + 1);
    if (line.empty()) continue;
    if (!all && !captions.empty()) {
      captions.emplace_back();
      break;
    }
    if (!is_valid_utf8(line) || line.find('\0') != std::string_view::npos)
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading the caption '{}', line {}: expected UTF-8 text", path.string(), number),
                  "save the file as UTF-8");
    captions.emplace_back(line);
  }
  return captions;
}

void read_texts(const fs::path& root, const Found& found, const ImageFolderOptions& options, ImageFolder* folder) {
  for (const std::string& name : found.pictures) {
    const std::string text = text_name(name);
    std::vector<std::string> captions;
    std::string reason = "there is no .txt with a caption beside it";
    if (found.texts.contains(text)) {
      reason = why_not_readable(root, root / text);
      if (reason.empty()) captions = read_caption_file(root / text, options.all_caption_lines);
      reason = reason.empty() ? "the .txt beside it is blank" : "the .txt beside it: " + reason;
      folder->num_longer_caption_files += captions.size() > 1 && !options.all_caption_lines;
    }
    if (captions.empty() && !options.allow_missing_captions) {
      folder->left_out.push_back({name, reason});
      continue;
    }
    SourceImage image{root / name, name, captions.empty() ? "" : std::move(captions.front())};
    if (options.all_caption_lines && captions.size() > 1)
      image.more_captions.assign(std::make_move_iterator(captions.begin() + 1), std::make_move_iterator(captions.end()));
    folder->images.push_back(std::move(image));
  }
}

void read_folder_names(const fs::path& root, const Found& found, const ImageFolderOptions& options,
                       ImageFolder* folder) {
  for (const std::string& name : found.pictures) {
    std::string caption = fs::path(name).parent_path().filename().string();
    if (caption.empty() && !options.allow_missing_captions)
      folder->left_out.push_back({name, "it lies in no sub-folder whose name could be its caption"});
    else
      folder->images.push_back({root / name, name, std::move(caption)});
  }
}

}  // namespace

std::string to_string(CaptionSource source) {
  for (const auto& [value, name] : kCaptionSources)
    if (value == source) return std::string(name);
  LORASHARD_CHECK(false, "caption source {}", static_cast<int>(source));
}

CaptionSource parse_caption_source(const std::string& name) {
  std::string words;
  for (const auto& [value, word] : kCaptionSources) {
    if (name == word) return value;
    words += fmt::format("{}{}", words.empty() ? "" : ", ", word);
  }
  throw Error(ErrorKind::usage, fmt::format("expected one of {} as the source of captions, found '{}'", words, name));
}

std::optional<CaptionSource> captions_of_pictures_in(const fs::path& folder) {
  const Found found = walk(fs::canonical(folder));
  return found.pictures.empty() ? std::nullopt : std::optional(choose_source(found));
}

void require_pictures(const ImageFolder& listed, const fs::path& source) {
  if (!listed.images.empty()) return;
  std::string message = fmt::format("listing '{}': expected pictures (PNG, JPEG, WebP), found none", source.string());
  if (!listed.left_out.empty())
    message += fmt::format(" to take; {} left out, '{}' for one: {}", listed.left_out.size(),
                           listed.left_out.front().file_name, listed.left_out.front().reason);
  throw Error(ErrorKind::usage, message);
}

ImageFolder list_image_folder(const fs::path& source, const ImageFolderOptions& options) {
  std::error_code error;
  const fs::path root = fs::canonical(source, error);
  if (error || !fs::is_directory(root, error))
    throw Error(ErrorKind::usage, fmt::format("listing '{}': expected a folder of pictures or a .parquet file, found {}", source.string(),
                                              fs::exists(source, error) ? "something else" : "nothing there"));
  Found found = walk(root);
  ImageFolder folder;
  folder.caption_source = options.captions ? *options.captions : choose_source(found);
  folder.num_other_files = found.num_other_files;
  switch (folder.caption_source) {
    case CaptionSource::metadata_jsonl:
    case CaptionSource::metadata_csv:
      read_tables(root, found, options, &folder);
      break;
    case CaptionSource::txt_beside:
      read_texts(root, found, options, &folder);
      break;
    case CaptionSource::folder_names:
      read_folder_names(root, found, options, &folder);
      break;
    case CaptionSource::parquet:
      LORASHARD_CHECK(false, "'{}' listed as a folder of pictures", source.string());
    case CaptionSource::none:
      for (const std::string& name : found.pictures) folder.images.push_back({root / name, name, ""});
  }
  std::move(found.left_out.begin(), found.left_out.end(), std::back_inserter(folder.left_out));
  std::stable_sort(folder.left_out.begin(), folder.left_out.end(),
                   [](const LeftOut& a, const LeftOut& b) { return a.file_name < b.file_name; });
  require_pictures(folder, source);
  return folder;
}

}  // namespace lorashard
