// Resampling with antialiasing, bit for bit what Pillow's Image.resize gives on RGB (src/libImaging/Resample.c: two passes,
// 8-bit fixed-point coefficients), because torchvision's Resize on PIL images is what the reference scripts train on.
#pragma once
#include <string>

#include "data/image.h"

namespace lorashard {

enum class Interpolation { nearest, bilinear, bicubic, lanczos, box, hamming };

/// "lanczos" and so on, as in the recipe; throws Error(usage) naming the allowed words.
Interpolation parse_interpolation(const std::string& name);

Image resize(const Image& image, ImageSize size, Interpolation interpolation);

}  // namespace lorashard
