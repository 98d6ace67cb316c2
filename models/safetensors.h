// The safetensors format: strict reading by mmap, durable writing. What the reference package rejects is rejected here
// too, and so are duplicate keys, more than 8 dimensions, more than 100,000 tensors and nesting where none belongs.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

namespace lorashard {

/// Tensors by name. Ordered, so that everything written from one has one byte order.
using StateDict = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

class SafetensorsFile {
 public:
  /// Maps `path` read-only. Throws Error(usage) when it doesn't exist, Error(bad_data) naming what is wrong with it.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const Metadata& metadata() const;
  std::vector<std::string> keys() const;  ///< sorted
  bool contains(const std::string& key) const;
  /// A tensor on the mapped bytes: no copy; it keeps the mapping alive; it must not be written to.
  at::Tensor tensor(const std::string& key) const;
  StateDict tensors() const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

/// For a contiguous tensor on the bytes of a mapped file, of which a copy is used from now on: gives its pages back to the system, which
/// reads them again should the tensor be read. Does nothing for any other tensor. Thread-safe.
void release_mapped_pages(const at::Tensor& tensor);

/// Writes `tensors` (made contiguous, CPU) durably: header sorted as the reference package does (dtype alignment descending,
/// then name), 8-byte aligned, so the bytes depend on the content alone. Throws Error(io).
void write_safetensors(const std::filesystem::path& path, const StateDict& tensors, const Metadata& metadata = {});

}  // namespace lorashard
