#include "models/safetensors.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "models/safetensors_header.h"

namespace lorashard {
namespace {

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }
  /// Closes now: a network file system may report a failed write only here.
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

int open_retrying(const std::filesystem::path& path, int flags, mode_t mode = 0) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

/// Every mapping there is: first byte and size. What lies in none of them is memory of its own.
std::map<const char*, size_t>& mappings() {
  static std::map<const char*, size_t> all;
  return all;
}
std::mutex& mappings_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// A whole file, mapped read-only for as long as a tensor lies on it.
class Mapping {
 public:
  explicit Mapping(const std::filesystem::path& path) {
    const std::string doing = fmt::format("reading safetensors '{}'", path.string());
    // O_NONBLOCK: a FIFO in the file's place must not hang the open.
    const Descriptor file(open_retrying(path, O_RDONLY | O_NONBLOCK));
    if (file.get() < 0) throw errno_error(doing, /*missing_is_usage=*/true);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) throw errno_error(doing);
    if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::bad_data, doing + ": it is not a regular file");
    size_ = static_cast<size_t>(status.st_size);
    if (size_ == 0) return;
    void* const data = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (data == MAP_FAILED) throw errno_error(doing);
    data_ = static_cast<const char*>(data);
    const std::lock_guard lock(mappings_mutex());
    mappings()[data_] = size_;
  }
  ~Mapping() {
    if (!data_) return;
    {
      const std::lock_guard lock(mappings_mutex());
      mappings().erase(data_);
    }
    ::munmap(const_cast<char*>(data_), size_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  std::string_view bytes() const { return {data_, size_}; }

 private:
  const char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace

struct SafetensorsFile::Impl {
  explicit Impl(const std::filesystem::path& file)
      : path(file.string()),
        mapping(std::make_shared<const Mapping>(file)),
        header(parse_safetensors_header(mapping->bytes(), path)) {}

  at::Tensor tensor(const std::string& key, const SafetensorsEntry& entry) const {
    const std::string_view bytes = mapping->bytes().substr(entry.begin, entry.end - entry.begin);
    // A bool that is neither 0 nor 1 is undefined behaviour for whoever reads it.
    if (entry.dtype == at::kBool && std::any_of(bytes.begin(), bytes.end(), [](char c) { return c != 0 && c != 1; })) {
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading safetensors '{}': tensor '{}' is BOOL but has bytes that are neither 0 nor 1",
                              path, key));
    }
    const bool is_aligned = reinterpret_cast<uintptr_t>(bytes.data()) % c10::elementSize(entry.dtype) == 0;
    if (bytes.empty() || !is_aligned) {
      at::Tensor copy = at::empty(entry.shape, entry.dtype);
      if (!bytes.empty()) std::memcpy(copy.data_ptr(), bytes.data(), bytes.size());
      return copy;
    }
    return at::from_blob(
        const_cast<char*>(bytes.data()), entry.shape, [keep = mapping](void*) {}, at::TensorOptions(entry.dtype));
  }

  std::string path;
  std::shared_ptr<const Mapping> mapping;
  SafetensorsHeader header;
};

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path) : impl_(std::make_shared<const Impl>(path)) {}

const Metadata& SafetensorsFile::metadata() const { return impl_->header.metadata; }

std::vector<std::string> SafetensorsFile::keys() const {
  std::vector<std::string> keys;
  for (const auto& [key, entry] : impl_->header.tensors) keys.push_back(key);
  return keys;
}

bool SafetensorsFile::contains(const std::string& key) const { return impl_->header.tensors.count(key) > 0; }

at::Tensor SafetensorsFile::tensor(const std::string& key) const {
  const auto found = impl_->header.tensors.find(key);
  if (found == impl_->header.tensors.end()) {
    throw Error(ErrorKind::bad_data,
                fmt::format("reading safetensors '{}': there is no tensor '{}'", impl_->path, key));
  }
  return impl_->tensor(key, found->second);
}

void release_mapped_pages(const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cpu() || tensor.nbytes() == 0) return;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.const_data_ptr()), end = begin + tensor.nbytes();
  const std::lock_guard lock(mappings_mutex());
  auto next = mappings().upper_bound(reinterpret_cast<const char*>(begin));
  if (next == mappings().begin()) return;
  const auto& [data, size] = *--next;
  if (end > reinterpret_cast<uintptr_t>(data) + size) return;
  // Whole pages alone: those at the ends belong to the neighbours too.
  const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
  if (first < last) ::madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

StateDict SafetensorsFile::tensors() const {
  StateDict state;
  for (const auto& [key, entry] : impl_->header.tensors) state.emplace(key, impl_->tensor(key, entry));
  return state;
}

namespace {

std::string json_string(const std::string& text) {
  try {
    return nlohmann::json(text).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error(ErrorKind::bad_data, "writing safetensors: a name or a metadata value isn't UTF-8");
  }
}

struct Item {
  std::string name;
  at::Tensor tensor;
};

/// Largest alignment first, then by name, as the reference package does.
std::vector<Item> in_file_order(const StateDict& tensors) {
  std::vector<Item> items;
  for (const auto& [name, tensor] : tensors) {
    LORASHARD_CHECK(name != "__metadata__", "'__metadata__' can't be a tensor's name");
    LORASHARD_CHECK(tensor.defined(), "tensor '{}' is undefined", name);
    items.push_back({name, tensor.detach().to(at::kCPU).contiguous()});
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) {
    return safetensors_dtype_order(a.tensor.scalar_type()) < safetensors_dtype_order(b.tensor.scalar_type());
  });
  return items;
}

/// The length and the JSON. Metadata in the order of its keys (the reference package's order is random).
std::string make_header(const std::vector<Item>& items, const Metadata& metadata) {
  std::string json = "{";
  const auto separate = [&] { json += json.back() == '{' ? "" : ","; };
  if (!metadata.empty()) {
    json += "\"__metadata__\":{";
    for (const auto& [key, value] : metadata) {
      separate();
      json += json_string(key) + ":" + json_string(value);
    }
    json += "}";
  }
  uint64_t offset = 0;
  for (const Item& item : items) {
    separate();
    const uint64_t end = offset + item.tensor.nbytes();
    json += fmt::format(R"({}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", json_string(item.name),
                        safetensors_dtype_name(item.tensor.scalar_type()), fmt::join(item.tensor.sizes(), ","), offset,
                        end);
    offset = end;
  }
  json += "}";
  json.append((8 - json.size() % 8) % 8, ' ');
  const uint64_t length = json.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + json;
}

void write_all(int fd, const void* data, size_t size, const std::filesystem::path& path) {
  const char* at = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t written = ::write(fd, at, size);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw errno_error(fmt::format("writing safetensors '{}'", path.string()));
    at += written;
    size -= static_cast<size_t>(written);
  }
}

}  // namespace

void write_safetensors(const std::filesystem::path& path, const StateDict& tensors, const Metadata& metadata) {
  const std::vector<Item> items = in_file_order(tensors);
  const std::string header = make_header(items, metadata);
  write_durably(path, [&](const std::filesystem::path& temporary) {
    Descriptor file(open_retrying(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0666));
    if (file.get() < 0) throw errno_error(fmt::format("writing safetensors '{}'", path.string()));
    write_all(file.get(), header.data(), header.size(), path);
    for (const Item& item : items) write_all(file.get(), item.tensor.const_data_ptr(), item.tensor.nbytes(), path);
    if (!file.close()) throw errno_error(fmt::format("closing safetensors '{}'", path.string()));
  });
}

}  // namespace lorashard
