#include "data/hdf5_file.h"

#include <hdf5.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <mutex>
#include <utility>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr uint64_t kChunkBytes = 64 << 10;
constexpr size_t kMaxAttributeBytes = 256;

/// HDF5 may be built without its own lock.
std::mutex& hdf5_mutex() {
  static std::mutex mutex;
  return mutex;
}

class Lock {
 public:
  Lock() : lock_(hdf5_mutex()) {
    static const bool ready = [] {
      H5dont_atexit();  // files are closed by their owners; at exit a file whose close failed would be tried again
      H5open();
      H5PLset_loading_state(0);  // no filter or driver is ever loaded on behalf of a file
      return true;
    }();
    (void)ready;
    H5Eset_auto2(H5E_DEFAULT, nullptr, nullptr);  // per thread: errors are ours to tell
  }

 private:
  std::lock_guard<std::mutex> lock_;
};

/// A handle of any kind, closed at the end of its scope.
class Handle {
 public:
  Handle(hid_t id, herr_t (*close)(hid_t)) : id_(id), close_(close) {}
  ~Handle() {
    if (id_ >= 0) close_(id_);
  }
  Handle(Handle&& other) noexcept : id_(other.release()), close_(other.close_) {}
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  operator hid_t() const { return id_; }
  hid_t release() { return std::exchange(id_, -1); }

 private:
  hid_t id_;
  herr_t (*close_)(hid_t);
};

/// The innermost entry of HDF5's error stack: the cause.
std::string hdf5_cause() {
  std::string cause;
  H5Ewalk2(
      H5E_DEFAULT, H5E_WALK_UPWARD,
      [](unsigned, const H5E_error2_t* entry, void* text) -> herr_t {
        if (entry->desc != nullptr) *static_cast<std::string*>(text) = entry->desc;
        return 1;
      },
      &cause);
  H5Eclear2(H5E_DEFAULT);
  return cause.empty() ? "HDF5 gives no reason" : cause;
}

[[noreturn]] void write_failed(const std::filesystem::path& path, const std::string& what) {
  throw Error(ErrorKind::io, fmt::format("writing '{}', {}: {}", path.string(), what, hdf5_cause()),
              "is there room on the disk, and may the folder be written to?");
}

[[noreturn]] void broken(const std::filesystem::path& path, const std::string& what) {
  // HDF5 hands on what the system said of a read: the file may be whole.
  if (what.find("errno = ") != std::string::npos)
    throw Error(ErrorKind::io, fmt::format("reading shard '{}', {}", path.string(), what));
  throw Error(ErrorKind::bad_data, fmt::format("reading shard '{}', {}", path.string(), what),
              "the file is damaged, or isn't a shard of lorashard: pack the images again");
}

[[noreturn]] void broken_dataset(const std::filesystem::path& path, const std::string& name, const std::string& what) {
  broken(path, fmt::format("dataset '/{}': {}", name, what));
}

Handle access_properties() {
  Handle properties(H5Pcreate(H5P_FILE_ACCESS), H5Pclose);
  H5Pset_libver_bounds(properties, H5F_LIBVER_V110, H5F_LIBVER_V110);
  H5Pset_file_locking(properties, false, true);  // shards never change; NFS and Lustre often have no locks
  H5Pset_fclose_degree(properties, H5F_CLOSE_STRONG);
  return properties;
}

/// The bytes must depend on the contents alone: no times, and nothing left unwritten in a chunk.
Handle dataset_properties(H5D_fill_time_t fill_time) {
  Handle properties(H5Pcreate(H5P_DATASET_CREATE), H5Pclose);
  H5Pset_obj_track_times(properties, false);
  H5Pset_fill_time(properties, fill_time);
  return properties;
}

}  // namespace

Hdf5Writer::Hdf5Writer(const std::filesystem::path& path) : path_(path) {
  const Lock lock;
  const Handle access = access_properties();
  const Handle creation(H5Pcreate(H5P_FILE_CREATE), H5Pclose);
  H5Pset_obj_track_times(creation, false);
  file_ = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, creation, access);
  if (file_ < 0) write_failed(path_, "making the file");
}

Hdf5Writer::~Hdf5Writer() {
  if (file_ < 0) return;
  const Lock lock;
  H5Fclose(file_);
}

void Hdf5Writer::close() {
  const Lock lock;
  if (H5Fclose(std::exchange(file_, -1)) < 0) write_failed(path_, "closing the file");
}

void Hdf5Writer::write_attribute(const std::string& name, const std::string& value) {
  const Lock lock;
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle type(H5Tcopy(H5T_C_S1), H5Tclose);
  H5Tset_size(type, value.size());
  H5Tset_strpad(type, H5T_STR_NULLPAD);
  const Handle attribute(H5Acreate2(file_, name.c_str(), type, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute < 0 || H5Awrite(attribute, type, value.data()) < 0)
    write_failed(path_, fmt::format("attribute '{}'", name));
}

void Hdf5Writer::write_attribute(const std::string& name, uint64_t value) {
  const Lock lock;
  const Handle space(H5Screate(H5S_SCALAR), H5Sclose);
  const Handle attribute(H5Acreate2(file_, name.c_str(), H5T_STD_U64LE, space, H5P_DEFAULT, H5P_DEFAULT), H5Aclose);
  if (attribute < 0 || H5Awrite(attribute, H5T_NATIVE_UINT64, &value) < 0)
    write_failed(path_, fmt::format("attribute '{}'", name));
}

void Hdf5Writer::write_chunked(const std::string& name, int64_t type, const void* values, uint64_t count,
                               uint64_t chunk) {
  const hsize_t dims[1] = {count}, chunk_dims[1] = {std::min(count, chunk)};
  const Handle space(H5Screate_simple(1, dims, nullptr), H5Sclose);
  const Handle properties = dataset_properties(H5D_FILL_TIME_ALLOC);
  if (H5Pset_chunk(properties, 1, chunk_dims) < 0 || H5Pset_fletcher32(properties) < 0)
    write_failed(path_, fmt::format("dataset '/{}'", name));
  const Handle dataset(H5Dcreate2(file_, name.c_str(), type, space, H5P_DEFAULT, properties, H5P_DEFAULT), H5Dclose);
  if (dataset < 0 || H5Dwrite(dataset, type, H5S_ALL, H5S_ALL, H5P_DEFAULT, values) < 0)
    write_failed(path_, fmt::format("dataset '/{}'", name));
}

void Hdf5Writer::write_dataset(const std::string& name, std::span<const uint64_t> values) {
  const Lock lock;
  write_chunked(name, H5T_STD_U64LE, values.data(), values.size(), kChunkBytes / sizeof(uint64_t));
}

void Hdf5Writer::write_dataset(const std::string& name, std::span<const uint8_t> values) {
  const Lock lock;
  write_chunked(name, H5T_STD_U8LE, values.data(), values.size(), kChunkBytes);
}

FileExtent Hdf5Writer::reserve_dataset(const std::string& name, uint64_t bytes) {
  const Lock lock;
  const hsize_t dims[1] = {bytes};
  const Handle space(H5Screate_simple(1, dims, nullptr), H5Sclose);
  const Handle properties = dataset_properties(H5D_FILL_TIME_NEVER);
  H5Pset_alloc_time(properties, H5D_ALLOC_TIME_EARLY);
  const Handle dataset(H5Dcreate2(file_, name.c_str(), H5T_STD_U8LE, space, H5P_DEFAULT, properties, H5P_DEFAULT),
                       H5Dclose);
  const haddr_t offset = dataset < 0 ? HADDR_UNDEF : H5Dget_offset(dataset);
  if (offset == HADDR_UNDEF) write_failed(path_, fmt::format("dataset '/{}'", name));
  return {offset, bytes};
}

Hdf5Reader::Hdf5Reader(const std::filesystem::path& path, const std::vector<std::string>& names,
                       const std::vector<std::string>& more_names)
    : path_(path) {
  struct stat status = {};
  if (stat(path.c_str(), &status) != 0) throw errno_error(fmt::format("opening shard '{}'", path.string()), true);
  if (!S_ISREG(status.st_mode)) broken(path_, "opening it: it is no regular file");
  file_bytes_ = static_cast<uint64_t>(status.st_size);
  const Lock lock;
  errno = 0;
  Handle file(H5Fopen(path.c_str(), H5F_ACC_RDONLY, access_properties()), H5Fclose);
  // A signature that can't be read is to HDF5 the same as a wrong one.
  if (file < 0 && (errno == EIO || errno == ESTALE || errno == ETIMEDOUT))
    throw errno_error(fmt::format("opening shard '{}'", path.string()));
  if (file < 0) broken(path_, fmt::format("opening it: {}", hdf5_cause()));
  file_ = file;
  std::vector<std::string> expected = names;
  has_more_ = !more_names.empty() && num_links() == names.size() + more_names.size();
  if (has_more_) expected.insert(expected.end(), more_names.begin(), more_names.end());
  check_links(expected);
  file.release();
}

Hdf5Reader::~Hdf5Reader() {
  const Lock lock;
  H5Fclose(file_);
}

uint64_t Hdf5Reader::num_links() const {
  H5G_info_t group = {};
  if (H5Gget_info(file_, &group) < 0) broken(path_, fmt::format("listing its datasets: {}", hdf5_cause()));
  return group.nlinks;
}

void Hdf5Reader::check_links(const std::vector<std::string>& names) const {
  if (num_links() != names.size())
    broken(path_, fmt::format("expected {} datasets, found {}", names.size(), num_links()));
  for (const std::string& name : names) {
    H5L_info_t link = {};
    if (H5Lget_info(file_, name.c_str(), &link, H5P_DEFAULT) < 0) broken_dataset(path_, name, "it isn't there");
    if (link.type != H5L_TYPE_HARD) broken_dataset(path_, name, "it is a link to elsewhere");
  }
}

std::string Hdf5Reader::read_string_attribute(const std::string& name) const {
  const Lock lock;
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Handle type(attribute < 0 ? -1 : H5Aget_type(attribute), H5Tclose);
  const Handle space(attribute < 0 ? -1 : H5Aget_space(attribute), H5Sclose);
  if (type < 0 || H5Tget_class(type) != H5T_STRING || H5Tis_variable_str(type) != 0 ||
      H5Tget_size(type) > kMaxAttributeBytes || H5Sget_simple_extent_npoints(space) != 1)
    broken(path_, fmt::format("attribute '{}': expected a short text, found none", name));
  std::string value(H5Tget_size(type), '\0');
  if (H5Aread(attribute, type, value.data()) < 0) broken(path_, fmt::format("attribute '{}': {}", name, hdf5_cause()));
  return value;
}

uint64_t Hdf5Reader::read_number_attribute(const std::string& name) const {
  const Lock lock;
  const Handle attribute(H5Aopen(file_, name.c_str(), H5P_DEFAULT), H5Aclose);
  const Handle type(attribute < 0 ? -1 : H5Aget_type(attribute), H5Tclose);
  const Handle space(attribute < 0 ? -1 : H5Aget_space(attribute), H5Sclose);
  if (type < 0 || H5Tequal(type, H5T_STD_U64LE) <= 0 || H5Sget_simple_extent_npoints(space) != 1)
    broken(path_, fmt::format("attribute '{}': expected a 64-bit number, found none", name));
  uint64_t value = 0;
  if (H5Aread(attribute, H5T_NATIVE_UINT64, &value) < 0)
    broken(path_, fmt::format("attribute '{}': {}", name, hdf5_cause()));
  return value;
}

namespace {

/// Opens a dataset that has the one form the writer gives it; anything else is a file made to harm or a broken one.
uint64_t open_dataset(hid_t file, const std::filesystem::path& path, const std::string& name, hid_t type,
                      H5D_layout_t layout, int num_filters, hid_t* result) {
  Handle dataset(H5Dopen2(file, name.c_str(), H5P_DEFAULT), H5Dclose);
  if (dataset < 0) broken_dataset(path, name, hdf5_cause());
  const Handle stored(H5Dget_type(dataset), H5Tclose), space(H5Dget_space(dataset), H5Sclose);
  const Handle properties(H5Dget_create_plist(dataset), H5Pclose);
  if (stored < 0 || space < 0 || properties < 0) broken_dataset(path, name, hdf5_cause());
  if (H5Tequal(stored, type) <= 0)
    broken_dataset(path, name, fmt::format("expected {}", type == H5T_STD_U64LE ? "uint64" : "uint8"));
  hsize_t count = 0;
  if (H5Sget_simple_extent_ndims(space) != 1 || H5Sget_simple_extent_dims(space, &count, nullptr) != 1)
    broken_dataset(path, name, "expected one dimension");
  if (H5Pget_layout(properties) != layout || H5Pget_external_count(properties) != 0)
    broken_dataset(path, name,
                   layout == H5D_CHUNKED ? "expected chunks in this file" : "expected one piece in this file");
  if (H5Pget_nfilters(properties) != num_filters) broken_dataset(path, name, "expected other filters");
  for (int i = 0; i < num_filters; ++i) {
    unsigned flags = 0, config = 0;
    size_t num_values = 0;
    if (H5Pget_filter2(properties, static_cast<unsigned>(i), &flags, &num_values, nullptr, 0, nullptr, &config) !=
        H5Z_FILTER_FLETCHER32)
      broken_dataset(path, name, "expected no filter but fletcher32");
  }
  *result = dataset.release();
  return count;
}

}  // namespace

uint64_t Hdf5Reader::open_chunked(const std::string& name, int64_t type, uint64_t element_bytes,
                                  int64_t* dataset) const {
  const uint64_t count = open_dataset(file_, path_, name, type, H5D_CHUNKED, 1, dataset);
  if (count > file_bytes_ / element_bytes) {
    H5Dclose(*dataset);
    broken_dataset(path_, name, fmt::format("{} values do not fit in a file of {} bytes", count, file_bytes_));
  }
  return count;
}

std::vector<uint64_t> Hdf5Reader::read_numbers(const std::string& name) const {
  const Lock lock;
  hid_t id = -1;
  std::vector<uint64_t> values(open_chunked(name, H5T_STD_U64LE, sizeof(uint64_t), &id));
  const Handle dataset(id, H5Dclose);
  if (H5Dread(dataset, H5T_NATIVE_UINT64, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    broken_dataset(path_, name, hdf5_cause());
  return values;
}

std::vector<uint8_t> Hdf5Reader::read_bytes(const std::string& name) const {
  const Lock lock;
  hid_t id = -1;
  std::vector<uint8_t> values(open_chunked(name, H5T_STD_U8LE, 1, &id));
  const Handle dataset(id, H5Dclose);
  if (H5Dread(dataset, H5T_NATIVE_UINT8, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()) < 0)
    broken_dataset(path_, name, hdf5_cause());
  return values;
}

FileExtent Hdf5Reader::find_contiguous(const std::string& name) const {
  const Lock lock;
  hid_t id = -1;
  const uint64_t bytes = open_dataset(file_, path_, name, H5T_STD_U8LE, H5D_CONTIGUOUS, 0, &id);
  const Handle dataset(id, H5Dclose);
  const haddr_t offset = H5Dget_offset(dataset);
  if (offset == HADDR_UNDEF || offset > file_bytes_ || bytes > file_bytes_ - offset)
    broken_dataset(path_, name,
                   fmt::format("expected {} bytes inside a file of {}: it is cut short", bytes, file_bytes_));
  return {offset, bytes};
}

}  // namespace lorashard
