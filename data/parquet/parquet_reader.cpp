// Parquet files by Apache Arrow's C++ libraries, row group by row group, in small batches: all of liblorashard_parquet.so.
#include <arrow/api.h>
#include <arrow/io/file.h>
#include <arrow/util/io_util.h>
#include <fmt/ranges.h>
#include <parquet/arrow/reader.h>
#include <parquet/arrow/schema.h>
#include <parquet/exception.h>

#include <algorithm>
#include <string_view>
#include <type_traits>
#include <utility>

#include "data/parquet_api.h"
#include "dist/error.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using arrow::Array, arrow::DataType, arrow::Type;

constexpr int64_t kBatchRows = 32;
// What may be allocated: a page of 2 GiB, the format's limit, and the batch copied out of it; less for a small file, whose pages can
// claim as much when it is damaged.
constexpr int64_t kMaxMemory = int64_t{4} << 30, kAlwaysMemory = int64_t{512} << 20, kMemoryPerByte = 64;
constexpr size_t kShownNames = 50, kShownType = 200;
// A footer can claim any number of rows; no picture is smaller than this many bytes.
constexpr int64_t kAlwaysRows = 1'000'000, kMinPictureBytes = 32;

bool is_bytes(const DataType& type) {
  if (type.id() == Type::DICTIONARY) return is_bytes(*static_cast<const arrow::DictionaryType&>(type).value_type());
  return type.id() == Type::BINARY || type.id() == Type::LARGE_BINARY || type.id() == Type::BINARY_VIEW;
}

bool is_text(const DataType& type) {
  if (type.id() == Type::DICTIONARY) return is_text(*static_cast<const arrow::DictionaryType&>(type).value_type());
  return type.id() == Type::STRING || type.id() == Type::LARGE_STRING || type.id() == Type::STRING_VIEW;
}

bool is_texts(const DataType& type) {
  const bool list = type.id() == Type::LIST || type.id() == Type::LARGE_LIST || type.id() == Type::FIXED_SIZE_LIST;
  return list && is_text(*static_cast<const arrow::BaseListType&>(type).value_type());
}

bool is_number(const DataType& type) {
  return arrow::is_integer(type.id()) || type.id() == Type::FLOAT || type.id() == Type::DOUBLE;
}

/// Element i of an array for which is_bytes() or is_text() holds; nothing when null. Good while the array lives.
std::optional<std::string_view> bytes_at(const Array& array, int64_t i) {
  if (array.IsNull(i)) return std::nullopt;
  switch (array.type_id()) {
    case Type::BINARY:
    case Type::STRING:
      return static_cast<const arrow::BinaryArray&>(array).GetView(i);
    case Type::LARGE_BINARY:
    case Type::LARGE_STRING:
      return static_cast<const arrow::LargeBinaryArray&>(array).GetView(i);
    case Type::BINARY_VIEW:
    case Type::STRING_VIEW:
      return static_cast<const arrow::BinaryViewArray&>(array).GetView(i);
    case Type::DICTIONARY: {
      const auto& encoded = static_cast<const arrow::DictionaryArray&>(array);
      return bytes_at(*encoded.dictionary(), encoded.GetValueIndex(i));
    }
    default:
      LORASHARD_CHECK(false, "bytes of {}", array.type()->ToString());
  }
}

/// The same of an array for which is_number() holds.
std::optional<double> number_at(const Array& array, int64_t i) {
  if (array.IsNull(i)) return std::nullopt;
  const auto value = [&]<class Numbers>(const Numbers& numbers) { return static_cast<double>(numbers.Value(i)); };
  switch (array.type_id()) {
    case Type::INT8: return value(static_cast<const arrow::Int8Array&>(array));
    case Type::INT16: return value(static_cast<const arrow::Int16Array&>(array));
    case Type::INT32: return value(static_cast<const arrow::Int32Array&>(array));
    case Type::INT64: return value(static_cast<const arrow::Int64Array&>(array));
    case Type::UINT8: return value(static_cast<const arrow::UInt8Array&>(array));
    case Type::UINT16: return value(static_cast<const arrow::UInt16Array&>(array));
    case Type::UINT32: return value(static_cast<const arrow::UInt32Array&>(array));
    case Type::UINT64: return value(static_cast<const arrow::UInt64Array&>(array));
    case Type::FLOAT: return value(static_cast<const arrow::FloatArray&>(array));
    case Type::DOUBLE: return value(static_cast<const arrow::DoubleArray&>(array));
    default: LORASHARD_CHECK(false, "a number of {}", array.type()->ToString());
  }
}

/// The values of a list array, and where those of element i begin and end.
struct ListElement {
  const Array& values;
  int64_t begin, end;
};

ListElement list_at(const Array& array, int64_t i) {
  const auto of = [i](const auto& list) -> ListElement {
    return {*list.values(), list.value_offset(i), list.value_offset(i) + list.value_length(i)};
  };
  if (array.type_id() == Type::LIST) return of(static_cast<const arrow::ListArray&>(array));
  if (array.type_id() == Type::LARGE_LIST) return of(static_cast<const arrow::LargeListArray&>(array));
  return of(static_cast<const arrow::FixedSizeListArray&>(array));
}

std::optional<std::vector<uint8_t>> copy_of(std::optional<std::string_view> bytes) {
  if (!bytes) return std::nullopt;
  return std::vector<uint8_t>(bytes->begin(), bytes->end());
}

int64_t max_memory(const fs::path& path) {
  std::error_code error;  // opening the file says it
  const uintmax_t bytes = fs::file_size(path, error);
  return error ? kAlwaysMemory : std::min<int64_t>(kMaxMemory, kAlwaysMemory + kMemoryPerByte * std::min<int64_t>(bytes, kMaxMemory));
}

using Field = parquet::arrow::SchemaField;

const Field* child_of(const Field& field, const std::string& name) {
  if (field.field->type()->id() != Type::STRUCT) return nullptr;
  const auto found = std::find_if(field.children.begin(), field.children.end(),
                                  [&](const Field& child) { return child.field->name() == name; });
  return found == field.children.end() ? nullptr : &*found;
}

class ArrowParquetReader : public ParquetReader {
 public:
  ArrowParquetReader(const fs::path& path, const MetadataColumns& columns, ParquetPart part)
      : path_(path), columns_(columns), part_(part), pool_(arrow::system_memory_pool(), max_memory(path)) {
    guard([&] {
      open_file();
      choose_columns();
    });
  }

  bool next(ParquetRow& row) override {
    while (batch_ == nullptr || at_ == batch_->num_rows())
      if (!guard([&] { return read_batch(); })) return false;
    row = ParquetRow{.row = row_, .row_group = row_group_};
    if (part_ == ParquetPart::texts) {
      if (has_names_) row.name = bytes_of(columns_.image, "path").value_or("");
      if (!columns_.caption.empty()) row.captions = captions();
      if (!columns_.weight.empty()) row.weight = number_at(*column(columns_.weight), at_);
      if (!columns_.repeats.empty()) row.repeats = number_at(*column(columns_.repeats), at_);
    } else {
      row.image = copy_of(bytes_of(columns_.image, "bytes"));
      if (!columns_.mask.empty()) row.mask = copy_of(bytes_of(columns_.mask, "bytes"));
    }
    ++at_;
    ++row_;
    return true;
  }

 private:
  [[noreturn]] void broken(std::string what, const std::string& hint) const {
    std::replace(what.begin(), what.end(), '\n', ' ');
    const std::string group = batches_ == nullptr ? "" : fmt::format(", row group {}", row_group_);
    throw Error(ErrorKind::bad_data, fmt::format("reading '{}'{}: {}", path_.string(), group, what), hint);
  }
  [[noreturn]] void damaged(const std::string& what) const {
    broken(what, "the file is damaged, cut short or no parquet file: download it again");
  }
  [[noreturn]] void failed(const arrow::Status& status) const {
    const int os_error = arrow::internal::ErrnoFromStatus(status);
    if (os_error == 0) damaged(status.message());
    throw Error(ErrorKind::io, fmt::format("reading '{}': {}", path_.string(), status.message()), "", os_error);
  }
  void check(const arrow::Status& status) const {
    if (!status.ok()) failed(status);
  }
  template <class Value>
  Value check(arrow::Result<Value> result) const {
    check(result.status());
    return std::move(result).ValueUnsafe();
  }
  /// What Arrow throws or returns as an Error.
  template <class Action>
  std::invoke_result_t<Action> guard(const Action& action) const {
    try {
      return action();
    } catch (const Error&) {
      throw;
    } catch (const parquet::ParquetStatusException& error) {
      failed(error.status());
    } catch (const std::exception& error) {
      damaged(error.what());
    }
  }

  void open_file() {
    parquet::ReaderProperties properties(&pool_);
    properties.enable_buffered_stream();  // pages as they come, not whole column chunks
    properties.set_page_checksum_verification(true);
    parquet::ArrowReaderProperties arrow_properties(/*use_threads=*/false);
    arrow_properties.set_batch_size(kBatchRows);
    arrow_properties.set_pre_buffer(false);
    const auto file = check(arrow::io::ReadableFile::Open(path_.string(), &pool_));
    parquet::arrow::FileReaderBuilder builder;
    check(builder.Open(file, properties));
    builder.memory_pool(&pool_)->properties(arrow_properties);
    reader_ = check(builder.Build());
    const int64_t num_rows = reader_->parquet_reader()->metadata()->num_rows(), num_bytes = check(file->GetSize());
    if (num_rows < 0 || num_rows > kAlwaysRows + num_bytes / kMinPictureBytes)
      damaged(fmt::format("its {} bytes can't hold {} rows with a picture each", num_bytes, num_rows));
  }

  /// The column `name`. `option` names it on the command line.
  const Field& find(const std::string& name, const std::string& option) const {
    const Field* found = nullptr;
    std::vector<std::string> names;
    for (const Field& field : reader_->manifest().schema_fields) {
      if (names.size() < kShownNames) names.push_back(field.field->name());
      if (field.field->name() != name) continue;
      if (found != nullptr) broken(fmt::format("the column '{}' is there twice", name), "");
      found = &field;
    }
    if (found == nullptr)
      throw Error(ErrorKind::usage,
                  fmt::format("reading '{}': expected a column '{}', found '{}'", path_.string(), name, fmt::join(names, "', '")),
                  fmt::format("name the right one with {}", option));
    return *found;
  }

  [[noreturn]] void other_type(const Field& field, const std::string& expected) const {
    broken(fmt::format("the column '{}': expected {}, found {}", field.field->name(), expected,
                       field.field->type()->ToString().substr(0, kShownType)),
           "");
  }

  /// The part with the encoded pictures of a column of pictures.
  const Field& bytes_field(const std::string& name, const std::string& option) const {
    const Field& field = find(name, option);
    const Field* bytes = field.field->type()->id() == Type::STRUCT ? child_of(field, "bytes") : &field;
    if (bytes == nullptr || !is_bytes(*bytes->field->type()))
      other_type(field, "pictures as struct<bytes: binary, path: string> or binary");
    return *bytes;
  }

  void read_leaf(const Field& field) {
    if (field.is_leaf()) leaves_.push_back(field.column_index);
    for (const Field& child : field.children) read_leaf(child);
  }

  void choose_columns() {
    const Field& image = bytes_field(columns_.image, "--image-column");
    const Field* mask = columns_.mask.empty() ? nullptr : &bytes_field(columns_.mask, "--mask-column");
    if (part_ == ParquetPart::pictures) {
      read_leaf(image);
      if (mask != nullptr) read_leaf(*mask);
      return;
    }
    const Field* path = child_of(find(columns_.image, "--image-column"), "path");
    has_names_ = path != nullptr && is_text(*path->field->type());
    if (has_names_) read_leaf(*path);
    if (!columns_.caption.empty()) {
      const Field& caption = find(columns_.caption, "--caption-column");
      if (!is_text(*caption.field->type()) && !is_texts(*caption.field->type()))
        other_type(caption, "captions as string or list of strings");
      read_leaf(caption);
    }
    for (const auto& [name, option] : {std::pair(columns_.weight, "--weight-column"), {columns_.repeats, "--repeats-column"}}) {
      if (name.empty()) continue;
      const Field& field = find(name, option);
      if (!is_number(*field.field->type())) other_type(field, "numbers");
      read_leaf(field);
    }
  }

  /// The next batch of the file that isn't empty; false when there is none.
  bool read_batch() {
    batch_ = nullptr;
    at_ = 0;
    while (true) {
      if (batches_ == nullptr) {
        if (row_group_ == reader_->num_row_groups()) return false;
        batches_ = check(reader_->GetRecordBatchReader({row_group_}, leaves_));
        rows_left_ = reader_->parquet_reader()->metadata()->RowGroup(row_group_)->num_rows();
      }
      check(batches_->ReadNext(&batch_));
      if (batch_ != nullptr) {
        check(batch_->ValidateFull());
        rows_left_ -= batch_->num_rows();
      }
      if (rows_left_ < 0 || (batch_ == nullptr && rows_left_ > 0)) damaged("its columns have other numbers of rows than it says");
      if (batch_ != nullptr && batch_->num_rows() > 0) return true;
      if (batch_ != nullptr) continue;
      batches_ = nullptr;
      ++row_group_;
    }
  }

  std::shared_ptr<Array> column(const std::string& name) const {
    auto found = batch_->GetColumnByName(name);
    LORASHARD_CHECK(found != nullptr, "no column '{}' in a batch of '{}'", name, path_.string());
    return found;
  }

  /// Of the row at hand: the column's value, or the child `child` of one that is a struct.
  std::optional<std::string_view> bytes_of(const std::string& name, const std::string& child) const {
    const std::shared_ptr<Array> array = column(name);
    if (array->type_id() != Type::STRUCT) return bytes_at(*array, at_);
    if (array->IsNull(at_)) return std::nullopt;
    const auto part = static_cast<const arrow::StructArray&>(*array).GetFieldByName(child);
    LORASHARD_CHECK(part != nullptr, "no '{}' in '{}'", child, name);
    return bytes_at(*part, at_);
  }

  std::optional<std::vector<std::string>> captions() const {
    const std::shared_ptr<Array> array = column(columns_.caption);
    if (array->IsNull(at_)) return std::nullopt;
    if (is_text(*array->type())) return std::vector<std::string>{std::string(bytes_at(*array, at_).value_or(""))};
    std::vector<std::string> captions;
    const ListElement list = list_at(*array, at_);
    for (int64_t i = list.begin; i < list.end; ++i) {
      const std::optional<std::string_view> text = bytes_at(list.values, i);
      if (!text)
        throw Error(ErrorKind::bad_data,
                    fmt::format("reading '{}', row group {}, row {}: the column '{}': expected texts, found null among them",
                                path_.string(), row_group_, row_, columns_.caption));
      captions.emplace_back(*text);
    }
    return captions;
  }

  const fs::path path_;
  const MetadataColumns columns_;
  const ParquetPart part_;
  arrow::CappedMemoryPool pool_;  // before what is allocated in it
  std::unique_ptr<parquet::arrow::FileReader> reader_;
  std::vector<int> leaves_;  // of the schema, that are read
  bool has_names_ = false;
  std::unique_ptr<arrow::RecordBatchReader> batches_;  // of row_group_
  std::shared_ptr<arrow::RecordBatch> batch_;
  int row_group_ = 0;
  int64_t rows_left_ = 0, at_ = 0, row_ = 0;  // in the row group's batches to come, in the batch, in the file
};

std::string version() { return "Arrow " ARROW_VERSION_STRING; }

std::unique_ptr<ParquetReader> open_parquet(const fs::path& path, const MetadataColumns& columns, ParquetPart part) {
  return std::make_unique<ArrowParquetReader>(path, columns, part);
}

}  // namespace
}  // namespace lorashard

#define LORASHARD_EXPORT extern "C" __attribute__((visibility("default")))

LORASHARD_EXPORT const char* lorashard_parquet_api_version() { return lorashard::kParquetApiVersion; }

LORASHARD_EXPORT const void* lorashard_parquet_api() {
  static constexpr lorashard::ParquetApi kApi = {.version = lorashard::version, .open = lorashard::open_parquet};
  return &kApi;
}
