// Resampling with antialiasing, bit for bit what Pillow 13's Image.resize gives on RGB (src/libImaging/Resample.c: two
// passes, fixed-point weights), because torchvision's Resize on PIL images is what the reference scripts train on.
#pragma once
#include <string>

#include "data/image.h"

namespace lorashard {

enum class Interpolation { nearest, bilinear, bicubic, lanczos, box, hamming };

/// "lanczos" and so on, as in the recipe; throws Error(usage) naming the allowed words.
Interpolation parse_interpolation(const std::string& name);

Image resize(const Image& image, ImageSize size, Interpolation interpolation);

/// A rectangle of pixels.
struct Region {
  int64_t top = 0, left = 0, height = 0, width = 0;
};

struct ResizeKernels;  // data/image_resize_kernels.h

/// The pixels `region` of resize(image, size, interpolation), at the cost of these alone. `kernels` is for the tests
/// that compare them; null picks the fastest of this machine, and all give the same bits.
Image resize_region(const Image& image, ImageSize size, const Region& region, Interpolation interpolation,
                    const ResizeKernels* kernels = nullptr);

}  // namespace lorashard
