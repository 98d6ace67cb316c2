// A product of one row with a weight (a time embedding's) is a matrix times a vector, whose last bits depend on where in memory the matrix
// begins; in a mapped file that is chance. Used by models/lora_linear and models/frozen_conv.
#pragma once
#include <ATen/ATen.h>

#include <cstdint>

namespace lorashard {

/// `weight`, or a copy where LibTorch's allocator would put it, for a product with `rows` rows. Two rows or more don't care.
inline at::Tensor aligned_weight(const at::Tensor& weight, int64_t rows) {
  constexpr uintptr_t kAlignment = 64;  // of all that LibTorch allocates
  if (rows != 1 || !weight.is_cpu()) return weight;
  return reinterpret_cast<uintptr_t>(weight.const_data_ptr()) % kAlignment == 0 ? weight : weight.clone();
}

}  // namespace lorashard
