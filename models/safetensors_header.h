// The header of a safetensors file: bytes to names, types, shapes and places, every rule of the format checked.
// Used by models/safetensors.cpp alone; apart from it so that the checks can be tested on bytes in memory.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace lorashard {

struct SafetensorsEntry {
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  uint64_t begin = 0, end = 0;  ///< bytes, counted from the start of the file
};

struct SafetensorsHeader {
  std::map<std::string, std::string> metadata;
  std::map<std::string, SafetensorsEntry> tensors;
};

/// Checks the whole of `file` (its data only by length). Throws Error(bad_data) "reading safetensors 'what': ...".
SafetensorsHeader parse_safetensors_header(std::string_view file, const std::string& what);

/// "F32" for at::kFloat and so on; Error(usage) for a type the format has no name for.
std::string safetensors_dtype_name(at::ScalarType dtype);
/// Position of `dtype` in the order in which the reference package writes tensors (larger alignment first).
int safetensors_dtype_order(at::ScalarType dtype);

}  // namespace lorashard
