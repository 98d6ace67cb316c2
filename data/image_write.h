// Pictures out: PNG files, and an SVG drawing rendered to one (the report).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/image.h"

namespace lorashard {

/// The PNG file of `image`: 8-bit RGB, no metadata.
std::vector<uint8_t> encode_png(const Image& image);

/// Draws `svg` (with its width and height in pixels, pictures as data: URIs) on white, `scale` times as large.
Image render_svg(const std::string& svg, double scale = 1);

/// "data:image/png;base64,..." for an <image> of an SVG.
std::string png_data_uri(const Image& image);

}  // namespace lorashard
