// The two inner loops of data/image_resize.cpp: weighted sums of pixels in 22-bit fixed point. Integer arithmetic, so
// that the portable and the vector kernels give the same bits.
#pragma once
#include <cstdint>
#include <vector>

namespace lorashard {

/// Which source positions each output position sums, and with what weights, in units of 2^-22 (|weight| < 2).
struct ResizeTaps {
  int64_t stride = 0;          ///< weights kept for one output position: the longest sum, rounded up to a multiple of 4
  std::vector<int32_t> first;  ///< [out] first source position
  std::vector<int32_t> count;  ///< [out] source positions summed
  std::vector<int32_t> weight;  ///< [out, stride]; zero from `count` on
};

inline constexpr int kWeightBits = 22;  // Pillow's PRECISION_BITS = 32 - 8 - 2

/// Bytes that must be readable behind the last pixel of a row that `horizontal` reads.
inline constexpr int64_t kRowPadding = 32;

struct ResizeKernels {
  const char* name;
  /// Row by row: out[x] = sum of in[taps.first[x] + i] * weight[x][i] over RGB pixels. `in` and `out` hold `num_rows`
  /// row pointers; rows of `out` have room for 1 byte more than their pixels, rows of `in` for kRowPadding.
  void (*horizontal)(const uint8_t* const* in, uint8_t* const* out, int64_t num_rows, const ResizeTaps& taps);
  /// One row of `num_bytes`: out = sum of in[i] * weight[i] over `count` rows.
  void (*vertical)(const uint8_t* const* in, const int32_t* weight, int64_t count, uint8_t* out, int64_t num_bytes);
};

const ResizeKernels& portable_resize_kernels();
const ResizeKernels& fastest_resize_kernels();  ///< of the machine this runs on

}  // namespace lorashard
