#include "data/metadata_table.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <string_view>

#include "data/utf8.h"
#include "dist/error.h"

namespace lorashard {
namespace {

constexpr size_t kMaxRowBytes = size_t{1} << 20;
constexpr int kMaxJsonDepth = 32;

/// Where an error is: the file, and the line where the row begins.
struct Place {
  const std::filesystem::path& path;
  int64_t line;
};

[[noreturn]] void broken(const Place& place, const std::string& what, const std::string& hint = "") {
  throw Error(ErrorKind::bad_data, fmt::format("reading '{}', line {}: {}", place.path.string(), place.line, what),
              hint);
}

/// Calls `row` with the text of each row and the line it begins on. `continues` says that a row's text goes on in the
/// next line. Blank lines are passed over. Never holds more than one row.
void for_each_row(const std::filesystem::path& path, const std::function<bool(std::string_view)>& continues,
                  const std::function<void(std::string_view, int64_t)>& row) {
  std::ifstream in(path, std::ios::binary);
  if (!in) throw errno_error(fmt::format("reading '{}'", path.string()));
  std::vector<char> block(64 << 10);
  std::string text;
  int64_t line = 1, first_line = 1;
  const auto finish = [&] {
    if (!is_valid_utf8(text)) broken({path, first_line}, "expected UTF-8", "save the file as UTF-8");
    if (text.find('\0') != std::string::npos) broken({path, first_line}, "found a zero byte in the text");
    if (text.ends_with('\r')) text.pop_back();
    if (text.find_first_not_of(" \t") != std::string::npos) row(text, first_line);
    text.clear();
  };
  while (in.read(block.data(), static_cast<std::streamsize>(block.size())), in.gcount() > 0) {
    std::string_view rest(block.data(), static_cast<size_t>(in.gcount()));
    while (!rest.empty()) {
      const size_t end = rest.find('\n');
      text += rest.substr(0, end);
      if (text.size() > kMaxRowBytes)
        broken({path, first_line}, fmt::format("a row is longer than {} bytes", kMaxRowBytes));
      if (end == std::string_view::npos) break;
      if (first_line == 1 && line == 1 && text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
      ++line;
      rest.remove_prefix(end + 1);
      if (continues(text)) {
        text += '\n';
      } else {
        finish();
        first_line = line;
      }
    }
  }
  if (in.bad()) throw errno_error(fmt::format("reading '{}'", path.string()));
  if (first_line == 1 && line == 1 && text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  if (!text.empty() && continues(text)) broken({path, first_line}, "a quoted field has no closing quote");
  finish();
}

/// Parses one line; the same key twice, or depth made to exhaust, is an error.
nlohmann::json parse_object(std::string_view text, const Place& place) {
  std::vector<std::set<std::string>> keys;
  std::string twice;
  bool too_deep = false;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& value) {
    using Event = nlohmann::json::parse_event_t;
    too_deep = too_deep || depth > kMaxJsonDepth;
    if (too_deep) return false;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if (event == Event::key && !keys.back().insert(value.get<std::string>()).second) twice = value.get<std::string>();
    return true;
  };
  nlohmann::json object;
  try {
    object = nlohmann::json::parse(text, watch);
  } catch (const nlohmann::json::exception& error) {
    if (!too_deep) broken(place, fmt::format("expected a JSON object: {}", error.what()));
  }
  if (too_deep) broken(place, fmt::format("JSON nested deeper than {}", kMaxJsonDepth));
  if (!twice.empty()) broken(place, fmt::format("the key '{}' is there twice", twice));
  if (!object.is_object()) broken(place, fmt::format("expected a JSON object, found {}", object.type_name()));
  return object;
}

/// The text under `key`; nothing when it is absent or null.
std::optional<std::string> text_of(const nlohmann::json& object, const std::string& key, const Place& place) {
  const auto found = object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (!found->is_string())
    broken(place, fmt::format("'{}': expected a text, found {}", key, found->type_name()));
  if (found->get_ref<const std::string&>().find('\0') != std::string::npos)
    broken(place, fmt::format("'{}': found a zero byte in the text", key));
  return found->get<std::string>();
}

/// Of a caption that is an array: the first becomes the row's caption, the others its more_captions.
void take_captions(const nlohmann::json& object, const std::string& key, const Place& place, MetadataRow* row) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) {
    row->caption = text_of(object, key, place).value_or("");
    return;
  }
  for (const nlohmann::json& item : *found) {
    if (!item.is_string()) broken(place, fmt::format("'{}': expected texts, found {}", key, item.type_name()));
    std::string text = item.get<std::string>();
    if (text.find('\0') != std::string::npos) broken(place, fmt::format("'{}': found a zero byte in the text", key));
    if (text.empty()) continue;
    if (row->caption.empty())
      row->caption = std::move(text);
    else
      row->more_captions.push_back(std::move(text));
  }
}

constexpr double kMostRepeats = 1e9;

void take_weight(double value, const std::string& column, const Place& place, MetadataRow* row) {
  const std::string wrong = why_no_weight(value);
  if (!wrong.empty()) broken(place, fmt::format("'{}': {}", column, wrong));
  row->weight = value;
}

void take_repeats(double value, const std::string& column, const Place& place, MetadataRow* row) {
  const std::string wrong = why_no_repeats(value);
  if (!wrong.empty()) broken(place, fmt::format("'{}': {}", column, wrong));
  row->repeats = static_cast<int64_t>(value);
}

/// The number under `key`; nothing when the key is "", absent or null.
std::optional<double> number_of(const nlohmann::json& object, const std::string& key, const Place& place) {
  const auto found = key.empty() ? object.end() : object.find(key);
  if (found == object.end() || found->is_null()) return std::nullopt;
  if (!found->is_number()) broken(place, fmt::format("'{}': expected a number, found {}", key, found->type_name()));
  return found->get<double>();
}

/// The same of a CSV field; an empty one is none.
std::optional<double> number_of(const std::string& field, const std::string& column, const Place& place) {
  if (field.empty()) return std::nullopt;
  double value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  if (error != std::errc() || end != field.data() + field.size())
    broken(place, fmt::format("'{}': expected a number, found '{}'", column, field));
  return value;
}

[[noreturn]] void no_such_column(const Place& place, const std::string& column, const std::vector<std::string>& columns,
                                 const std::string& flag) {
  broken(place, fmt::format("expected a column '{}', found '{}'", column, fmt::join(columns, "', '")),
         fmt::format("name the right one with {}", flag));
}

std::vector<std::string> keys_of(const nlohmann::json& object) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : object.items()) keys.push_back(key);
  return keys;
}

/// The fields of one record, RFC 4180.
std::vector<std::string> split_csv(std::string_view record, const Place& place) {
  std::vector<std::string> fields(1);
  for (size_t i = 0; i < record.size(); ++i) {
    if (record[i] == ',') {
      fields.emplace_back();
      continue;
    }
    if (record[i] != '"') {
      fields.back() += record[i];
      continue;
    }
    if (!fields.back().empty()) broken(place, "a quote inside a field that doesn't begin with one");
    for (++i; i < record.size(); ++i) {
      if (record[i] != '"')
        fields.back() += record[i];
      else if (i + 1 < record.size() && record[i + 1] == '"')
        fields.back() += record[i++];
      else
        break;
    }
    if (i + 1 < record.size() && record[i + 1] != ',') broken(place, "text after a closing quote");
  }
  return fields;
}

size_t column_index(const std::vector<std::string>& header, const std::string& column, const Place& place,
                    const std::string& flag) {
  const auto found = std::find(header.begin(), header.end(), column);
  if (found == header.end()) no_such_column(place, column, header, flag);
  if (std::find(found + 1, header.end(), column) != header.end())
    broken(place, fmt::format("the column '{}' is there twice", column));
  return static_cast<size_t>(found - header.begin());
}

}  // namespace

std::string why_no_weight(double value) {
  return std::isfinite(value) && value >= 0 ? "" : fmt::format("expected a number from 0, found {}", value);
}

std::string why_no_repeats(double value) {
  const bool good = value >= 1 && value <= kMostRepeats && value == std::floor(value);
  return good ? "" : fmt::format("expected a whole number from 1, found {}", value);
}

std::vector<MetadataRow> read_metadata_jsonl(const std::filesystem::path& path, const MetadataColumns& columns) {
  std::vector<MetadataRow> rows;
  std::vector<std::string> first_keys;
  bool any_caption = false;
  for_each_row(
      path, [](std::string_view) { return false; },
      [&](std::string_view text, int64_t line) {
        const Place place{path, line};
        const nlohmann::json object = parse_object(text, place);
        if (rows.empty()) first_keys = keys_of(object);
        const std::optional<std::string> file_name = text_of(object, columns.image, place);
        if (!file_name) no_such_column(place, columns.image, keys_of(object), "--image-column");
        any_caption = any_caption || object.contains(columns.caption);
        MetadataRow row{.file_name = *file_name, .caption = "", .line = line};
        take_captions(object, columns.caption, place, &row);
        if (!columns.mask.empty()) row.mask_file_name = text_of(object, columns.mask, place).value_or("");
        if (const auto weight = number_of(object, columns.weight, place)) take_weight(*weight, columns.weight, place, &row);
        if (const auto repeats = number_of(object, columns.repeats, place))
          take_repeats(*repeats, columns.repeats, place, &row);
        rows.push_back(std::move(row));
      });
  if (!rows.empty() && !any_caption)
    no_such_column({path, rows.front().line}, columns.caption, first_keys, "--caption-column");
  return rows;
}

std::vector<MetadataRow> read_metadata_csv(const std::filesystem::path& path, const MetadataColumns& columns) {
  std::vector<MetadataRow> rows;
  std::vector<std::string> header;
  // The position of a column in the header; nothing for one that isn't asked for.
  const auto find = [&](const std::string& column, const std::string& flag, const Place& place) {
    return column.empty() ? std::nullopt : std::optional(column_index(header, column, place, flag));
  };
  std::optional<size_t> image, caption, mask, weight, repeats;
  // A quote inside a quoted field is doubled, so a record is whole when its quotes are even in number.
  const auto open_quote = [](std::string_view text) { return std::count(text.begin(), text.end(), '"') % 2 == 1; };
  for_each_row(path, open_quote, [&](std::string_view text, int64_t line) {
    const Place place{path, line};
    std::vector<std::string> fields = split_csv(text, place);
    if (header.empty()) {
      header = std::move(fields);
      image = find(columns.image, "--image-column", place);
      caption = find(columns.caption, "--caption-column", place);
      mask = find(columns.mask, "--mask-column", place);
      weight = find(columns.weight, "--weight-column", place);
      repeats = find(columns.repeats, "--repeats-column", place);
      return;
    }
    if (fields.size() != header.size())
      broken(place, fmt::format("expected {} fields, found {}", header.size(), fields.size()),
             "put fields that hold commas or line ends into double quotes");
    MetadataRow row{.file_name = fields[*image], .caption = fields[*caption], .line = line};
    if (mask) row.mask_file_name = fields[*mask];
    if (weight)
      if (const auto value = number_of(fields[*weight], columns.weight, place)) take_weight(*value, columns.weight, place, &row);
    if (repeats)
      if (const auto value = number_of(fields[*repeats], columns.repeats, place))
        take_repeats(*value, columns.repeats, place, &row);
    rows.push_back(std::move(row));
  });
  return rows;
}

}  // namespace lorashard
