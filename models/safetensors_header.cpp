#include "models/safetensors_header.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <nlohmann/json.hpp>

#include "dist/error.h"

namespace lorashard {
namespace {

// The limits. The header's size is the reference package's; the others bound what a hostile header can cost.
constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxDims = 8;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxStringBytes = size_t{8} << 20;  // one metadata value (kohya's tag counts reach some hundred kB)
constexpr size_t kMaxMetadataKeys = 100'000;
constexpr size_t kMaxMetadataBytes = size_t{32} << 20;  // all of them

struct DtypeName {
  at::ScalarType dtype;
  const char* name;
};

// In the order in which the reference package writes tensors: `enum Dtype` of its tensor.rs, backwards.
constexpr DtypeName kDtypes[] = {
    {at::kUInt64, "U64"},
    {at::kLong, "I64"},
    {at::kDouble, "F64"},
    {at::kFloat, "F32"},
    {at::kUInt32, "U32"},
    {at::kInt, "I32"},
    {at::kBFloat16, "BF16"},
    {at::kHalf, "F16"},
    {at::kUInt16, "U16"},
    {at::kShort, "I16"},
    {at::kFloat8_e5m2fnuz, "F8_E5M2FNUZ"},
    {at::kFloat8_e4m3fnuz, "F8_E4M3FNUZ"},
    {at::kFloat8_e8m0fnu, "F8_E8M0"},
    {at::kFloat8_e4m3fn, "F8_E4M3"},
    {at::kFloat8_e5m2, "F8_E5M2"},
    {at::kChar, "I8"},
    {at::kByte, "U8"},
    {at::kBool, "BOOL"},
};

/// Text of a hostile file, fit for one line of a message.
std::string in_quotes(std::string_view text) {
  std::string clean(text.substr(0, 80));
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || static_cast<unsigned char>(c) >= 0x7f) c = '?';
  }
  return fmt::format("'{}{}'", clean, text.size() > 80 ? "..." : "");
}

/// Collects the header, refusing what doesn't belong as soon as it is seen. Returning false stops the parser.
class HeaderSax {
 public:
  struct Raw {
    bool has_dtype = false, has_shape = false, has_offsets = false;
    std::string dtype;
    std::vector<uint64_t> shape, offsets;
  };

  std::map<std::string, Raw> tensors;
  std::map<std::string, std::string> metadata;
  std::string fault;

  bool start_object(size_t) {
    if (place_ == Place::start) return enter(Place::top);
    if (place_ != Place::top) return unexpected("an object");
    return enter(in_metadata_ ? Place::metadata : Place::tensor);
  }

  bool end_object() {
    if (place_ == Place::tensor) {
      if (!raw_->has_dtype || !raw_->has_shape || !raw_->has_offsets) {
        return stop(fmt::format("tensor {} lacks '{}'", in_quotes(name_),
                                !raw_->has_dtype   ? "dtype"
                                : !raw_->has_shape ? "shape"
                                                   : "data_offsets"));
      }
      return enter(Place::top);
    }
    return enter(place_ == Place::metadata ? Place::top : Place::start);
  }

  bool key(std::string& key) {
    if (place_ == Place::metadata) return add_metadata_key(key);
    if (place_ == Place::tensor) return add_field(key);
    name_ = key;
    in_metadata_ = key == "__metadata__";
    if (in_metadata_) return seen_metadata_ ? stop("'__metadata__' is there twice") : (seen_metadata_ = true);
    if (key.size() > kMaxNameBytes)
      return stop(fmt::format("the name {} has more than {} bytes", in_quotes(key), kMaxNameBytes));
    if (tensors.size() == kMaxTensors) return stop(fmt::format("more than {} tensors", kMaxTensors));
    const auto [entry, is_new] = tensors.emplace(key, Raw{});
    raw_ = &entry->second;
    return is_new || stop(fmt::format("tensor {} is there twice", in_quotes(key)));
  }

  bool string(std::string& value) {
    if (place_ == Place::metadata) {
      metadata_bytes_ += value.size();
      if (metadata_bytes_ > kMaxMetadataBytes)
        return stop(fmt::format("more than {} bytes of metadata", kMaxMetadataBytes));
      metadata[field_] = value;
      return true;
    }
    if (place_ != Place::tensor || field_ != "dtype") return unexpected("a string");
    raw_->dtype = value;
    return true;
  }

  bool start_array(size_t) {
    if (place_ != Place::tensor || field_ == "dtype") return unexpected("an array");
    return enter(Place::numbers);
  }
  bool end_array() { return enter(Place::tensor); }

  bool number_unsigned(uint64_t value) {
    if (place_ != Place::numbers) return unexpected("a number");
    std::vector<uint64_t>& numbers = field_ == "shape" ? raw_->shape : raw_->offsets;
    if (numbers.size() == kMaxDims)
      return stop(fmt::format("tensor {}: '{}' has more than {} numbers", in_quotes(name_), field_, kMaxDims));
    numbers.push_back(value);
    return true;
  }

  bool number_integer(int64_t) { return unexpected("a negative number"); }
  bool number_float(double, const std::string&) { return unexpected("a fraction or a number beyond 64 bits"); }
  bool boolean(bool) { return unexpected("a boolean"); }
  bool null() { return unexpected("null"); }
  bool binary(std::vector<uint8_t>&) { return unexpected("binary"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception& error) {
    // Keep the cause and drop the library's own prefix.
    const std::string_view text = error.what();
    const size_t colon = text.find(": ");
    return stop(fmt::format("the header isn't JSON at byte {}: {}", position,
                            in_quotes(text.substr(colon == text.npos ? 0 : colon + 2))));
  }

 private:
  enum class Place { start, top, metadata, tensor, numbers };

  bool enter(Place place) {
    place_ = place;
    return true;
  }
  bool stop(std::string why) {
    fault = std::move(why);
    return false;
  }
  bool unexpected(const char* found) {
    if (place_ == Place::start) return stop(fmt::format("the header is {}, not an object", found));
    if (place_ == Place::top && !in_metadata_)
      return stop(fmt::format("tensor {} is {}, not an object", in_quotes(name_), found));
    if (in_metadata_) return stop(fmt::format("'__metadata__' may hold strings alone, found {}", found));
    return stop(fmt::format("tensor {}: '{}' can't hold {}", in_quotes(name_), field_, found));
  }

  bool add_metadata_key(const std::string& key) {
    field_ = key;
    metadata_bytes_ += key.size();
    if (metadata_bytes_ > kMaxMetadataBytes)
      return stop(fmt::format("more than {} bytes of metadata", kMaxMetadataBytes));
    if (metadata.size() == kMaxMetadataKeys)
      return stop(fmt::format("more than {} keys of metadata", kMaxMetadataKeys));
    return metadata.emplace(key, "").second || stop(fmt::format("metadata key {} is there twice", in_quotes(key)));
  }

  bool add_field(const std::string& key) {
    bool* seen = key == "dtype"          ? &raw_->has_dtype
                 : key == "shape"        ? &raw_->has_shape
                 : key == "data_offsets" ? &raw_->has_offsets
                                         : nullptr;
    if (!seen) return stop(fmt::format("tensor {} has an unknown field {}", in_quotes(name_), in_quotes(key)));
    if (*seen) return stop(fmt::format("tensor {} has '{}' twice", in_quotes(name_), key));
    *seen = true;
    field_ = key;
    return true;
  }

  Place place_ = Place::start;
  bool in_metadata_ = false, seen_metadata_ = false;
  size_t metadata_bytes_ = 0;
  std::string name_, field_;
  Raw* raw_ = nullptr;
};

/// The parser gathers a token (and the white space before it) before it hands it over, so an endless one must be
/// refused before parsing.
bool has_endless_token(std::string_view header) {
  size_t start = 0;  // of what lies between two of the characters that structure JSON
  for (size_t at = 0; at < header.size(); ++at) {
    const char c = header[at];
    if (c == '"') {
      start = ++at;
      while (at < header.size() && header[at] != '"') at += header[at] == '\\' ? 2 : 1;
      if (std::min(at, header.size()) - start > kMaxStringBytes) return true;
      start = at + 1;
    } else if (c == ',' || c == ':' || c == '[' || c == ']' || c == '{' || c == '}') {
      start = at + 1;
    } else if (at - start > kMaxStringBytes) {
      return true;
    }
  }
  return false;
}

const DtypeName* find_dtype(std::string_view name) {
  const auto* found =
      std::find_if(std::begin(kDtypes), std::end(kDtypes), [&](const DtypeName& d) { return name == d.name; });
  return found == std::end(kDtypes) ? nullptr : found;
}

/// Sets type, shape and place; returns what is wrong, or "".
std::string check_tensor(const HeaderSax::Raw& raw, uint64_t data_bytes, SafetensorsEntry& entry) {
  const DtypeName* dtype = find_dtype(raw.dtype);
  if (!dtype) return fmt::format("has the dtype {}, which isn't supported", in_quotes(raw.dtype));
  entry.dtype = dtype->dtype;
  // The product without zeros bounds the strides too, which LibTorch computes for empty tensors as well.
  uint64_t extent = c10::elementSize(entry.dtype);
  bool is_empty = false;
  for (const uint64_t size : raw.shape) {
    is_empty = is_empty || size == 0;
    if (__builtin_mul_overflow(extent, std::max<uint64_t>(size, 1), &extent) ||
        extent > uint64_t{std::numeric_limits<int64_t>::max()}) {
      return "has a shape whose size overflows 64 bits";
    }
    entry.shape.push_back(static_cast<int64_t>(size));
  }
  if (raw.offsets.size() != 2) return fmt::format("has {} data_offsets, not 2", raw.offsets.size());
  entry.begin = raw.offsets[0];
  entry.end = raw.offsets[1];
  if (entry.begin > entry.end || entry.end > data_bytes) {
    return fmt::format("lies at bytes {} to {} of {} bytes of data", entry.begin, entry.end, data_bytes);
  }
  const uint64_t expected = is_empty ? 0 : extent;
  if (entry.end - entry.begin != expected) {
    return fmt::format("has {} bytes, its dtype {} and shape [{}] need {}", entry.end - entry.begin, raw.dtype,
                       fmt::join(raw.shape, ", "), expected);
  }
  return "";
}

/// Tensors in file order must follow each other from the first byte of the data to the last.
std::string check_layout(const std::map<std::string, SafetensorsEntry>& tensors, uint64_t data_bytes) {
  std::vector<std::pair<const std::string, SafetensorsEntry> const*> order;
  order.reserve(tensors.size());
  for (const auto& item : tensors) order.push_back(&item);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    return std::pair(a->second.begin, a->second.end) < std::pair(b->second.begin, b->second.end);
  });
  uint64_t end = 0;
  for (const auto* item : order) {
    if (item->second.begin != end) {
      return fmt::format("tensor {} starts at byte {} of the data, but the one before it ends at byte {}",
                         in_quotes(item->first), item->second.begin, end);
    }
    end = item->second.end;
  }
  if (end != data_bytes)
    return fmt::format("the tensors end at byte {} of the data, the file has {} bytes of it", end, data_bytes);
  return "";
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& what) {
  const auto require = [&](bool good, const std::string& why) {
    if (!good) throw Error(ErrorKind::bad_data, fmt::format("reading safetensors '{}': {}", what, why),
                           "the file is cut off, damaged or of another kind; copy or download it again");
  };
  if (file.size() < 8) require(false, fmt::format("it has {} bytes, too few for a header", file.size()));
  uint64_t header_bytes = 0;  // little-endian, like every machine this runs on
  std::memcpy(&header_bytes, file.data(), 8);
  if (header_bytes > std::min<uint64_t>(kMaxHeaderBytes, file.size() - 8)) {
    require(false, fmt::format("it says its header has {} bytes, but the file has {} (and a header at most {})",
                               header_bytes, file.size(), kMaxHeaderBytes));
  }
  std::string_view header = file.substr(8, header_bytes);
  header = header.substr(0, header.find_last_not_of(" \t\r\n") + 1);  // padding may be long
  require(!header.empty() && header.front() == '{', "the header doesn't start with '{'");
  // The JSON parser takes a NUL for the end of its input and would not look at what follows.
  require(header.find('\0') == header.npos, "the header holds a NUL byte");
  require(!has_endless_token(header), fmt::format("the header holds a token of more than {} bytes", kMaxStringBytes));

  HeaderSax sax;
  const bool parsed = nlohmann::json::sax_parse(header.begin(), header.end(), &sax);
  if (!parsed) require(false, sax.fault);

  const uint64_t data_bytes = file.size() - 8 - header_bytes;
  SafetensorsHeader result;
  for (const auto& [name, raw] : sax.tensors) {
    const std::string fault = check_tensor(raw, data_bytes, result.tensors[name]);
    if (!fault.empty()) require(false, fmt::format("tensor {} {}", in_quotes(name), fault));
  }
  const std::string fault = check_layout(result.tensors, data_bytes);
  if (!fault.empty()) require(false, fault);
  for (auto& [name, entry] : result.tensors) {
    entry.begin += 8 + header_bytes;
    entry.end += 8 + header_bytes;
  }
  result.metadata = std::move(sax.metadata);
  return result;
}

std::string safetensors_dtype_name(at::ScalarType dtype) { return kDtypes[safetensors_dtype_order(dtype)].name; }

int safetensors_dtype_order(at::ScalarType dtype) {
  for (size_t i = 0; i < std::size(kDtypes); ++i) {
    if (kDtypes[i].dtype == dtype) return static_cast<int>(i);
  }
  throw Error(ErrorKind::usage,
              fmt::format("writing safetensors: the format has no name for the type '{}'", c10::toString(dtype)));
}

}  // namespace lorashard
