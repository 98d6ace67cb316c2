#include "data/image_resize.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numbers>
#include <utility>

#include "data/image_resize_kernels.h"
#include "dist/error.h"

namespace lorashard {
namespace {

constexpr std::array<std::pair<const char*, Interpolation>, 6> kNames = {{{"nearest", Interpolation::nearest},
                                                                          {"bilinear", Interpolation::bilinear},
                                                                          {"bicubic", Interpolation::bicubic},
                                                                          {"lanczos", Interpolation::lanczos},
                                                                          {"box", Interpolation::box},
                                                                          {"hamming", Interpolation::hamming}}};

// The filters are Pillow's expressions to the letter: another order of operations may round a weight differently.
double sinc(double x) { return x == 0.0 ? 1.0 : std::sin(x * std::numbers::pi) / (x * std::numbers::pi); }

double filter_value(Interpolation interpolation, double x) {
  const double distance = std::abs(x);
  switch (interpolation) {
    case Interpolation::box:
      return x > -0.5 && x <= 0.5 ? 1.0 : 0.0;
    case Interpolation::bilinear:
      return distance < 1.0 ? 1.0 - distance : 0.0;
    case Interpolation::hamming: {
      if (distance == 0.0) return 1.0;
      if (distance >= 1.0) return 0.0;
      const double angle = distance * std::numbers::pi;
      return std::sin(angle) / angle * (0.54f + 0.46f * std::cos(angle));
    }
    case Interpolation::bicubic: {
      constexpr double a = -0.5;
      if (distance < 1.0) return ((a + 2.0) * distance - (a + 3.0)) * distance * distance + 1;
      if (distance < 2.0) return (((distance - 5) * distance + 8) * distance - 4) * a;
      return 0.0;
    }
    case Interpolation::lanczos:
      return -3.0 <= x && x < 3.0 ? sinc(x) * sinc(x / 3) : 0.0;
    case Interpolation::nearest:
      break;
  }
  LORASHARD_CHECK(false, "nearest has no filter");
  return 0;
}

double filter_support(Interpolation interpolation) {
  switch (interpolation) {
    case Interpolation::box:
      return 0.5;
    case Interpolation::bicubic:
      return 2.0;
    case Interpolation::lanczos:
      return 3.0;
    default:
      return 1.0;
  }
}

/// Taps of output positions [begin, begin + count) when `in_size` positions become `out_size` (precompute_coeffs
/// there).
ResizeTaps make_taps(int64_t in_size, int64_t out_size, int64_t begin, int64_t count, Interpolation interpolation) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double filter_scale = std::max(scale, 1.0);
  const double support = filter_support(interpolation) * filter_scale, inverse = 1.0 / filter_scale;
  ResizeTaps taps;
  taps.stride = (static_cast<int64_t>(std::ceil(support)) * 2 + 1 + 3) / 4 * 4;
  taps.first.resize(count);
  taps.count.resize(count);
  taps.weight.assign(count * taps.stride, 0);
  std::vector<double> weight(taps.stride);
  for (int64_t i = 0; i < count; ++i) {
    const double center = (static_cast<double>(begin + i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(static_cast<int64_t>(center - support + 0.5), 0);
    const int64_t size = std::min<int64_t>(static_cast<int64_t>(center + support + 0.5), in_size) - first;
    double sum = 0;
    for (int64_t j = 0; j < size; ++j) {
      weight[j] = filter_value(interpolation, (static_cast<double>(j + first) - center + 0.5) * inverse);
      sum += weight[j];
    }
    for (int64_t j = 0; j < size; ++j) {
      const double fixed = (sum != 0.0 ? weight[j] / sum : weight[j]) * (1 << kWeightBits);
      LORASHARD_CHECK(std::abs(fixed) < 1 << 23, "weight {} of {} to {}", fixed, in_size, out_size);
      taps.weight[i * taps.stride + j] = static_cast<int32_t>(fixed < 0 ? fixed - 0.5 : fixed + 0.5);
    }
    taps.first[i] = static_cast<int32_t>(first);
    taps.count[i] = static_cast<int32_t>(size);
  }
  return taps;
}

/// Source positions of nearest, -1 for none; the running sum is Pillow's (ImagingScaleAffine), with its rounding.
std::vector<int64_t> nearest_positions(int64_t in_size, int64_t out_size, int64_t begin, int64_t count) {
  const double step = static_cast<double>(in_size) / static_cast<double>(out_size);
  std::vector<int64_t> positions(count, -1);
  double position = step * 0.5;
  for (int64_t i = 0; i < begin + count; ++i, position += step) {
    if (i >= begin && static_cast<int64_t>(position) < in_size) positions[i - begin] = static_cast<int64_t>(position);
  }
  return positions;
}

Image make_image(int64_t height, int64_t width) {
  return {height, width, std::vector<uint8_t>(static_cast<size_t>(height * width * 3))};
}

Image copy_region(const Image& image, const Region& region) {
  Image out = make_image(region.height, region.width);
  for (int64_t y = 0; y < region.height; ++y) {
    std::memcpy(&out.rgb[y * region.width * 3], &image.rgb[((region.top + y) * image.width + region.left) * 3],
                static_cast<size_t>(region.width * 3));
  }
  return out;
}

Image resize_nearest(const Image& image, ImageSize size, const Region& region) {
  const auto rows = nearest_positions(image.height, size.height, region.top, region.height);
  const auto columns = nearest_positions(image.width, size.width, region.left, region.width);
  Image out = make_image(region.height, region.width);
  for (int64_t y = 0; y < region.height; ++y) {
    for (int64_t x = 0; x < region.width; ++x) {
      if (rows[y] < 0 || columns[x] < 0) continue;
      std::memcpy(&out.rgb[(y * region.width + x) * 3], &image.rgb[(rows[y] * image.width + columns[x]) * 3], 3);
    }
  }
  return out;
}

/// Rows of pixels on their way through the passes. kRowPadding bytes are readable behind each.
struct Rows {
  std::unique_ptr<uint8_t[]> storage;
  std::vector<const uint8_t*> pointers;
};

std::vector<uint8_t*> row_pointers(uint8_t* first, int64_t num_rows, int64_t row_bytes) {
  std::vector<uint8_t*> pointers(num_rows);
  for (int64_t y = 0; y < num_rows; ++y) pointers[y] = first + y * row_bytes;
  return pointers;
}

std::unique_ptr<uint8_t[]> make_storage(int64_t num_rows, int64_t row_bytes) {
  return std::make_unique_for_overwrite<uint8_t[]>(num_rows * row_bytes + kRowPadding);
}

/// Rows [begin, end) of `image`: the rows that follow serve as padding, so that only the last few are copied.
Rows rows_of(const Image& image, int64_t begin, int64_t end) {
  const int64_t row_bytes = image.width * 3, num_rows = end - begin;
  const int64_t copied = std::min(num_rows, (kRowPadding + row_bytes - 1) / row_bytes);
  Rows rows{make_storage(copied, row_bytes), {}};
  std::memcpy(rows.storage.get(), &image.rgb[(end - copied) * row_bytes], copied * row_bytes);
  for (int64_t y = begin; y < end - copied; ++y) rows.pointers.push_back(&image.rgb[y * row_bytes]);
  for (int64_t y = 0; y < copied; ++y) rows.pointers.push_back(&rows.storage[y * row_bytes]);
  return rows;
}

/// Source positions [begin, end) that `taps` need.
std::pair<int64_t, int64_t> range_of(const ResizeTaps& taps) {
  return {taps.first.front(), taps.first.back() + taps.count.back()};
}

Rows horizontal_pass(const Rows& in, const ResizeTaps& taps, const ResizeKernels& kernels) {
  const auto num_rows = static_cast<int64_t>(in.pointers.size());
  const int64_t row_bytes = static_cast<int64_t>(taps.first.size()) * 3 + 1;
  auto storage = make_storage(num_rows, row_bytes);
  const auto out = row_pointers(storage.get(), num_rows, row_bytes);
  kernels.horizontal(in.pointers.data(), out.data(), num_rows, taps);
  return {std::move(storage), {out.begin(), out.end()}};
}

/// `in` holds the source rows from range_of(taps).first on.
void vertical_pass(const Rows& in, const ResizeTaps& taps, const std::vector<uint8_t*>& out, int64_t row_bytes,
                   const ResizeKernels& kernels) {
  for (size_t y = 0; y < out.size(); ++y) {
    const uint8_t* const* sources = &in.pointers[taps.first[y] - taps.first.front()];
    kernels.vertical(sources, &taps.weight[y * taps.stride], taps.count[y], out[y], row_bytes);
  }
}

void skip_pixels(Rows& rows, int64_t count) {
  for (auto& row : rows.pointers) row += count * 3;
}

Image resample(const Image& image, ImageSize size, const Region& region, Interpolation interpolation,
               const ResizeKernels& kernels) {
  const bool horizontal = size.width != image.width, vertical = size.height != image.height;
  ResizeTaps across, down;
  if (horizontal) across = make_taps(image.width, size.width, region.left, region.width, interpolation);
  if (vertical) down = make_taps(image.height, size.height, region.top, region.height, interpolation);
  const auto [begin, end] = vertical ? range_of(down) : std::pair{region.top, region.top + region.height};
  Rows rows = rows_of(image, begin, end);
  if (!horizontal) skip_pixels(rows, region.left);
  Image out = make_image(region.height, region.width);
  const int64_t out_bytes = region.width * 3;
  const auto out_rows = row_pointers(out.rgb.data(), region.height, out_bytes);

  // Each pass rounds to 8 bits, so their order shows. Pillow 13 takes the vertical one first where the height shrinks
  // by more than twice what the width does (Pillow up to 12.2: never).
  const int64_t shrinks = image.height - size.height;
  if (horizontal && vertical && shrinks > 0 && shrinks > 2 * (image.width - size.width)) {
    const auto [left, right] = range_of(across);
    skip_pixels(rows, left);
    for (auto& first : across.first) first -= static_cast<int32_t>(left);
    const int64_t row_bytes = (right - left) * 3;
    auto storage = make_storage(region.height, row_bytes);
    const auto between = row_pointers(storage.get(), region.height, row_bytes);
    vertical_pass(rows, down, between, row_bytes, kernels);
    rows = horizontal_pass({std::move(storage), {between.begin(), between.end()}}, across, kernels);
  } else {
    if (horizontal) rows = horizontal_pass(rows, across, kernels);
    if (vertical) {
      vertical_pass(rows, down, out_rows, out_bytes, kernels);
      return out;
    }
  }
  for (int64_t y = 0; y < region.height; ++y) std::memcpy(out_rows[y], rows.pointers[y], out_bytes);
  return out;
}

}  // namespace

Interpolation parse_interpolation(const std::string& name) {
  std::string allowed;
  for (const auto& [word, interpolation] : kNames) {
    if (name == word) return interpolation;
    allowed += (allowed.empty() ? "" : ", ") + std::string(word);
  }
  throw Error(ErrorKind::usage, fmt::format("interpolation '{}': expected one of {}", name, allowed));
}

Image resize_region(const Image& image, ImageSize size, const Region& region, Interpolation interpolation,
                    const ResizeKernels* kernels) {
  LORASHARD_CHECK(image.height > 0 && image.width > 0, "resize of a picture of {}x{}", image.width, image.height);
  LORASHARD_CHECK(region.top >= 0 && region.left >= 0 && region.height > 0 && region.width > 0 &&
                      region.top + region.height <= size.height && region.left + region.width <= size.width,
                  "region {}x{} at {},{} of {}x{}", region.width, region.height, region.left, region.top, size.width,
                  size.height);
  if (size.height == image.height && size.width == image.width) return copy_region(image, region);
  if (interpolation == Interpolation::nearest) return resize_nearest(image, size, region);
  return resample(image, size, region, interpolation, kernels ? *kernels : fastest_resize_kernels());
}

Image resize(const Image& image, ImageSize size, Interpolation interpolation) {
  return resize_region(image, size, {0, 0, size.height, size.width}, interpolation);
}

}  // namespace lorashard
