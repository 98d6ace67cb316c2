#include "data/image_resize_kernels.h"

#include <algorithm>

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstring>
#endif

namespace lorashard {
namespace {

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

uint8_t to_uint8(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kWeightBits, 0, 255)); }

void portable_horizontal(const uint8_t* const* in, uint8_t* const* out, int64_t num_rows, const ResizeTaps& taps) {
  const auto width = static_cast<int64_t>(taps.first.size());
  for (int64_t row = 0; row < num_rows; ++row) {
    for (int64_t x = 0; x < width; ++x) {
      const uint8_t* pixel = in[row] + 3 * int64_t{taps.first[x]};
      const int32_t* weight = &taps.weight[x * taps.stride];
      int32_t red = kHalf, green = kHalf, blue = kHalf;
      for (int32_t i = 0; i < taps.count[x]; ++i, pixel += 3) {
        red += pixel[0] * weight[i];
        green += pixel[1] * weight[i];
        blue += pixel[2] * weight[i];
      }
      out[row][3 * x] = to_uint8(red);
      out[row][3 * x + 1] = to_uint8(green);
      out[row][3 * x + 2] = to_uint8(blue);
    }
  }
}

void portable_vertical(const uint8_t* const* in, const int32_t* weight, int64_t count, uint8_t* out,
                       int64_t num_bytes) {
  constexpr int64_t kChunk = 64;  // sums that stay in registers or the nearest cache
  for (int64_t begin = 0; begin < num_bytes; begin += kChunk) {
    const int64_t size = std::min(kChunk, num_bytes - begin);
    int32_t sum[kChunk];
    std::fill(sum, sum + kChunk, kHalf);
    for (int64_t i = 0; i < count; ++i) {
      const uint8_t* row = in[i] + begin;
      for (int64_t j = 0; j < size; ++j) sum[j] += row[j] * weight[i];
    }
    for (int64_t j = 0; j < size; ++j) out[begin + j] = to_uint8(sum[j]);
  }
}

#if defined(__x86_64__)
// A weight of 23 bits is split as 256 * high + low: both fit the 16-bit multiply-add of two taps at once (pmaddwd),
// which is twice as fast as 32-bit products, and 256 * sum(high) + sum(low) is the very same integer.
#define LORASHARD_AVX2 __attribute__((target("avx2")))

struct SplitWeights {
  std::vector<int16_t> parts;  // for every four taps: 4 high, 4 low
};

SplitWeights split_for_quads(const ResizeTaps& taps) {
  SplitWeights split;
  split.parts.resize(taps.weight.size() * 2);
  for (size_t i = 0; i < taps.weight.size(); ++i) {
    int16_t* quad = &split.parts[i / 4 * 8];
    quad[i % 4] = static_cast<int16_t>(taps.weight[i] >> 8);
    quad[4 + i % 4] = static_cast<int16_t>(taps.weight[i] & 255);
  }
  return split;
}

LORASHARD_AVX2 inline __m256i load_twice(const void* source) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(source)));
}

// Sums of one output pixel in four rows. Lane 0 of a vector takes taps 0 and 1 of a quad, lane 1 taps 2 and 3; in each,
// 32-bit elements 0 to 2 are red, green and blue.
LORASHARD_AVX2 void horizontal_pixel(const uint8_t* const (&pixel)[4], const int16_t* weights, int32_t count,
                                     uint8_t* const (&out)[4]) {
  const __m256i to_pairs = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1,  //
                                            6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
  const __m256i to_high = _mm256_setr_epi8(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, -1, -1, -1, -1,  //
                                           4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, -1, -1, -1, -1);
  const __m256i to_low = _mm256_setr_epi8(8, 9, 10, 11, 8, 9, 10, 11, 8, 9, 10, 11, -1, -1, -1, -1,  //
                                          12, 13, 14, 15, 12, 13, 14, 15, 12, 13, 14, 15, -1, -1, -1, -1);
  __m256i high[4], low[4];
  for (int row = 0; row < 4; ++row) high[row] = low[row] = _mm256_setzero_si256();
  for (int32_t i = 0; i < count; i += 4, weights += 8) {
    const __m256i both = load_twice(weights);
    const __m256i weight_high = _mm256_shuffle_epi8(both, to_high), weight_low = _mm256_shuffle_epi8(both, to_low);
    for (int row = 0; row < 4; ++row) {
      const __m256i pairs = _mm256_shuffle_epi8(load_twice(pixel[row] + 3 * i), to_pairs);
      high[row] = _mm256_add_epi32(high[row], _mm256_madd_epi16(pairs, weight_high));
      low[row] = _mm256_add_epi32(low[row], _mm256_madd_epi16(pairs, weight_low));
    }
  }
  for (int row = 0; row < 4; ++row) {
    const __m256i lanes = _mm256_add_epi32(_mm256_slli_epi32(high[row], 8), low[row]);
    __m128i sum = _mm_add_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
    sum = _mm_srai_epi32(_mm_add_epi32(sum, _mm_set1_epi32(kHalf)), kWeightBits);
    sum = _mm_packus_epi16(_mm_packs_epi32(sum, sum), sum);
    const int32_t rgb = _mm_cvtsi128_si32(sum);
    std::memcpy(out[row], &rgb, 4);  // a fourth byte, which the next pixel overwrites
  }
}

LORASHARD_AVX2 void avx2_horizontal(const uint8_t* const* in, uint8_t* const* out, int64_t num_rows,
                                    const ResizeTaps& taps) {
  const SplitWeights split = split_for_quads(taps);
  const auto width = static_cast<int64_t>(taps.first.size());
  for (int64_t begin = 0; begin < num_rows; begin += 4) {
    int64_t row[4];  // the last group repeats the last row
    for (int64_t i = 0; i < 4; ++i) row[i] = std::min(begin + i, num_rows - 1);
    for (int64_t x = 0; x < width; ++x) {
      const int64_t offset = 3 * int64_t{taps.first[x]};
      const uint8_t* const pixel[4] = {in[row[0]] + offset, in[row[1]] + offset, in[row[2]] + offset,
                                       in[row[3]] + offset};
      uint8_t* const target[4] = {out[row[0]] + 3 * x, out[row[1]] + 3 * x, out[row[2]] + 3 * x, out[row[3]] + 3 * x};
      horizontal_pixel(pixel, &split.parts[x * taps.stride * 2], taps.count[x], target);
    }
  }
}

// 32 bytes of one output row. Unpacking two rows byte by byte pairs each byte with the one below it, as pmaddwd wants
// them.
LORASHARD_AVX2 void vertical_chunk(const uint8_t* const* in, const int32_t* weight, int64_t count, int64_t begin,
                                   uint8_t* out) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i high[4] = {zero, zero, zero, zero}, low[4] = {zero, zero, zero, zero};
  for (int64_t i = 0; i < count; i += 2) {
    const bool pair = i + 1 < count;
    const int32_t weight_0 = weight[i], weight_1 = pair ? weight[i + 1] : 0;
    const __m256i weight_high = _mm256_set1_epi32((weight_0 >> 8 & 0xffff) | (weight_1 >> 8) * 65536);
    const __m256i weight_low = _mm256_set1_epi32((weight_0 & 255) | (weight_1 & 255) << 16);
    const auto row_0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[i] + begin));
    const auto row_1 = pair ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in[i + 1] + begin)) : zero;
    const __m256i first = _mm256_unpacklo_epi8(row_0, row_1), second = _mm256_unpackhi_epi8(row_0, row_1);
    const __m256i pairs[4] = {_mm256_unpacklo_epi8(first, zero), _mm256_unpackhi_epi8(first, zero),
                              _mm256_unpacklo_epi8(second, zero), _mm256_unpackhi_epi8(second, zero)};
    for (int j = 0; j < 4; ++j) {
      high[j] = _mm256_add_epi32(high[j], _mm256_madd_epi16(pairs[j], weight_high));
      low[j] = _mm256_add_epi32(low[j], _mm256_madd_epi16(pairs[j], weight_low));
    }
  }
  for (int j = 0; j < 4; ++j) {
    const __m256i sum = _mm256_add_epi32(_mm256_slli_epi32(high[j], 8), low[j]);
    high[j] = _mm256_srai_epi32(_mm256_add_epi32(sum, _mm256_set1_epi32(kHalf)), kWeightBits);
  }
  const __m256i packed =
      _mm256_packus_epi16(_mm256_packs_epi32(high[0], high[1]), _mm256_packs_epi32(high[2], high[3]));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + begin), packed);
}

void avx2_vertical(const uint8_t* const* in, const int32_t* weight, int64_t count, uint8_t* out, int64_t num_bytes) {
  if (num_bytes < 32) return portable_vertical(in, weight, count, out, num_bytes);
  for (int64_t begin = 0; begin < num_bytes; begin += 32) {
    vertical_chunk(in, weight, count, std::min(begin, num_bytes - 32), out);  // the last chunk overlaps the one before
  }
}
#endif

}  // namespace

const ResizeKernels& portable_resize_kernels() {
  static const ResizeKernels kernels{"portable", portable_horizontal, portable_vertical};
  return kernels;
}

const ResizeKernels& fastest_resize_kernels() {
#if defined(__x86_64__)
  static const ResizeKernels avx2{"avx2", avx2_horizontal, avx2_vertical};
  static const bool has_avx2 = __builtin_cpu_supports("avx2") != 0;
  if (has_avx2) return avx2;
#endif
  return portable_resize_kernels();
}

}  // namespace lorashard
