// Decoded pictures: 8-bit RGB, upright. PNG, JPEG and WebP of every colour type: palette, grey, grey+alpha, RGBA (over
// white), 16-bit (the high byte), CMYK (Pillow's arithmetic); EXIF orientation applied; of an animation the first
// frame. Colour profiles are ignored, those of CMYK too, as the reference scripts do. The pixels equal Pillow's.
// Thread-safe.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace lorashard {

struct Image {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> rgb;  ///< [height, width, 3], row by row
};

struct ImageSize {
  int64_t height = 0, width = 0;
};

/// Limits that hold before a pixel is allocated; beyond them decoding throws Error(bad_data).
struct DecodeLimits {
  int64_t max_pixels = 64'000'000;
  int64_t max_side = 16384;
};

/// Decodes the whole file held in `bytes`. Throws Error(bad_data) naming `name` for truncated or broken files,
/// unknown formats and anything beyond `limits`; never returns grey fill for missing data, so a JPEG that libjpeg
/// as much as warns about is refused.
Image decode_image(std::span<const uint8_t> bytes, const std::string& name, const DecodeLimits& limits = {});

/// The alpha channel of the same file as a grey picture (all three channels alike); no pixels where it has none. Throws
/// the same.
Image decode_alpha(std::span<const uint8_t> bytes, const std::string& name, const DecodeLimits& limits = {});

}  // namespace lorashard
