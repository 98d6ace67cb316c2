#include "data/image.h"

#include <vips/vips.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <string_view>

#include "data/vips_library.h"
#include "dist/error.h"

namespace lorashard {
namespace {

enum class ImageFormat { png, jpeg, webp };

struct Unref {
  void operator()(void* object) const { g_object_unref(object); }
};
using ImagePointer = std::unique_ptr<VipsImage, Unref>;
using RegionPointer = std::unique_ptr<VipsRegion, Unref>;

/// vips keeps ONE error text for the whole process. Decoding holds this shared; a picture that failed is decoded once
/// more holding it alone, so that the reason given is its own and not that of another thread's picture.
std::shared_mutex& error_text_mutex() {
  static std::shared_mutex mutex;
  return mutex;
}

bool starts_with(std::span<const uint8_t> bytes, size_t offset, std::string_view magic) {
  return bytes.size() >= offset + magic.size() &&
         std::equal(magic.begin(), magic.end(), bytes.begin() + static_cast<std::ptrdiff_t>(offset),
                    [](char a, uint8_t b) { return static_cast<uint8_t>(a) == b; });
}

ImageFormat sniff(std::span<const uint8_t> bytes, const std::string& name) {
  if (starts_with(bytes, 0, "\x89PNG\r\n\x1a\n")) return ImageFormat::png;
  if (starts_with(bytes, 0, "\xff\xd8\xff")) return ImageFormat::jpeg;
  if (starts_with(bytes, 0, "RIFF") && starts_with(bytes, 8, "WEBP")) return ImageFormat::webp;
  throw Error(ErrorKind::bad_data,
              fmt::format("decoding '{}': expected a PNG, JPEG or WebP file, found {}", name,
                          bytes.empty() ? std::string("an empty one")
                                        : fmt::format("{} bytes of something else", bytes.size())),
              "convert it to PNG or JPEG, or take it out of the folder");
}

/// Reads the header; pixels are decoded when they are asked for.
ImagePointer open_image(std::span<const uint8_t> bytes, ImageFormat format) {
  void* data = const_cast<uint8_t*>(bytes.data());
  VipsImage* image = nullptr;
  switch (format) {
    case ImageFormat::png:
      vips_pngload_buffer(data, bytes.size(), &image, "access", VIPS_ACCESS_SEQUENTIAL, "fail_on", VIPS_FAIL_ON_ERROR,
                          nullptr);
      break;
    case ImageFormat::jpeg:
      // What libjpeg calls a warning includes the grey it fills in for data that isn't there.
      vips_jpegload_buffer(data, bytes.size(), &image, "access", VIPS_ACCESS_SEQUENTIAL, "fail_on",
                           VIPS_FAIL_ON_WARNING, nullptr);
      break;
    case ImageFormat::webp:
      vips_webpload_buffer(data, bytes.size(), &image, "access", VIPS_ACCESS_SEQUENTIAL, "fail_on", VIPS_FAIL_ON_ERROR,
                           nullptr);
      break;
  }
  return ImagePointer(image);
}

void check_limits(const VipsImage& image, const std::string& name, const DecodeLimits& limits) {
  const int64_t height = image.Ysize, width = image.Xsize;
  if (height > limits.max_side || width > limits.max_side || height * width > limits.max_pixels)
    throw Error(ErrorKind::bad_data,
                fmt::format("decoding '{}': expected at most {} pixels and {} a side, found {} x {} (width x height)",
                            name, limits.max_pixels, limits.max_side, width, height),
                "scale it down; training resizes it to the recipe's resolution anyway");
}

/// a * b / 255, rounded to nearest, as Pillow computes it.
uint8_t scale255(int a, int b) {
  const int product = a * b + 128;
  return static_cast<uint8_t>((product + (product >> 8)) >> 8);
}

uint8_t over_white(int value, int alpha) {
  const int sum = value * alpha + 255 * (255 - alpha) + 128;
  return static_cast<uint8_t>((sum + (sum >> 8)) >> 8);
}

uint8_t to_8_bits(uint8_t value) { return value; }
uint8_t to_8_bits(uint16_t value) { return static_cast<uint8_t>(value >> 8); }

enum class PixelLayout { grey, grey_alpha, rgb, rgba, cmyk, alpha_of_grey, alpha_of_rgb };

/// One row of the file's pixels to RGB.
template <class Value>
void convert_row(const Value* in, int64_t width, PixelLayout layout, uint8_t* rgb) {
  for (int64_t x = 0; x < width; ++x, rgb += 3) {
    switch (layout) {
      case PixelLayout::grey:
        rgb[0] = rgb[1] = rgb[2] = to_8_bits(in[0]);
        in += 1;
        break;
      case PixelLayout::grey_alpha:
        rgb[0] = rgb[1] = rgb[2] = over_white(to_8_bits(in[0]), to_8_bits(in[1]));
        in += 2;
        break;
      case PixelLayout::rgb:
        for (int c = 0; c < 3; ++c) rgb[c] = to_8_bits(in[c]);
        in += 3;
        break;
      case PixelLayout::rgba:
        for (int c = 0; c < 3; ++c) rgb[c] = over_white(to_8_bits(in[c]), to_8_bits(in[3]));
        in += 4;
        break;
      case PixelLayout::alpha_of_grey:
        rgb[0] = rgb[1] = rgb[2] = to_8_bits(in[1]);
        in += 2;
        break;
      case PixelLayout::alpha_of_rgb:
        rgb[0] = rgb[1] = rgb[2] = to_8_bits(in[3]);
        in += 4;
        break;
      case PixelLayout::cmyk: {
        const int white = 255 - to_8_bits(in[3]);
        for (int c = 0; c < 3; ++c) rgb[c] = static_cast<uint8_t>(white - scale255(to_8_bits(in[c]), white));
        in += 4;
        break;
      }
    }
  }
}

PixelLayout pixel_layout(const VipsImage& image, const std::string& name) {
  const bool known_format = image.BandFmt == VIPS_FORMAT_UCHAR || image.BandFmt == VIPS_FORMAT_USHORT;
  if (known_format && image.Coding == VIPS_CODING_NONE) {
    if (image.Bands == 1) return PixelLayout::grey;
    if (image.Bands == 2) return PixelLayout::grey_alpha;
    if (image.Bands == 3) return PixelLayout::rgb;
    if (image.Bands == 4) return image.Type == VIPS_INTERPRETATION_CMYK ? PixelLayout::cmyk : PixelLayout::rgba;
  }
  throw Error(ErrorKind::bad_data,
              fmt::format("decoding '{}': expected 1 to 4 channels of 8 or 16 bits, found {} of {}", name, image.Bands,
                          vips_enum_nick(VIPS_TYPE_BAND_FORMAT, image.BandFmt)));
}

/// Where pixel (x, y) of the file goes: start + x * step_x + y * step_y, in pixels of the upright picture.
struct Placement {
  int64_t height, width, start, step_x, step_y;
};

/// `orientation` is EXIF's: 1 as stored; 2 to 4 mirrored, turned, flipped; 5 to 8 with the sides exchanged.
Placement placement(int orientation, int64_t height, int64_t width) {
  const bool exchanged = orientation >= 5;
  const int64_t out_height = exchanged ? width : height, out_width = exchanged ? height : width;
  const bool from_right = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool from_below = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  const int64_t across = from_right ? -1 : 1, down = from_below ? -out_width : out_width;
  return {out_height, out_width, (from_below ? (out_height - 1) * out_width : 0) + (from_right ? out_width - 1 : 0),
          exchanged ? down : across, exchanged ? across : down};
}

/// False when vips reports an error (its text says which).
bool read_pixels(VipsImage* image, PixelLayout layout, const Placement& place, uint8_t* rgb) {
  constexpr int kStripRows = 16;
  const RegionPointer region(vips_region_new(image));
  std::vector<uint8_t> row(static_cast<size_t>(image->Xsize) * 3);
  for (int top = 0; top < image->Ysize; top += kStripRows) {
    const VipsRect strip = {0, top, image->Xsize, std::min(kStripRows, image->Ysize - top)};
    if (vips_region_prepare(region.get(), &strip) != 0) return false;
    for (int y = top; y < top + strip.height; ++y) {
      const VipsPel* in = VIPS_REGION_ADDR(region.get(), 0, y);
      uint8_t* const out = rgb + (place.start + y * place.step_y) * 3;
      uint8_t* const converted = place.step_x == 1 ? out : row.data();
      if (image->BandFmt == VIPS_FORMAT_USHORT)
        convert_row(reinterpret_cast<const uint16_t*>(in), image->Xsize, layout, converted);
      else if (layout == PixelLayout::rgb)
        std::copy_n(in, static_cast<size_t>(image->Xsize) * 3, converted);
      else
        convert_row(in, image->Xsize, layout, converted);
      if (converted == out) continue;
      for (int64_t x = 0; x < image->Xsize; ++x) std::copy_n(&row[x * 3], 3, out + x * place.step_x * 3);
    }
  }
  return true;
}

/// What of a file's pixels is wanted.
enum class Wanted { colour, alpha };

/// False when vips reports an error. Without an alpha channel that is wanted, the result has no pixels.
bool try_decode(std::span<const uint8_t> bytes, ImageFormat format, const std::string& name, const DecodeLimits& limits,
                Wanted wanted, Image* result) {
  const ImagePointer image = open_image(bytes, format);
  if (image == nullptr) return false;
  check_limits(*image, name, limits);
  PixelLayout layout = pixel_layout(*image, name);
  if (wanted == Wanted::alpha) {
    if (layout != PixelLayout::grey_alpha && layout != PixelLayout::rgba) return true;
    layout = layout == PixelLayout::rgba ? PixelLayout::alpha_of_rgb : PixelLayout::alpha_of_grey;
  }
  const Placement place = placement(vips_image_get_orientation(image.get()), image->Ysize, image->Xsize);
  result->height = place.height;
  result->width = place.width;
  result->rgb.resize(static_cast<size_t>(place.height * place.width) * 3);
  return read_pixels(image.get(), layout, place, result->rgb.data());
}

std::string error_text() {
  std::string text = vips_error_buffer() + vips_warnings();
  vips_error_clear();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  for (size_t at = text.find('\n'); at != std::string::npos; at = text.find('\n', at)) text.replace(at, 1, "; ");
  return text.empty() ? "the decoder gives no reason" : text;
}

Image decode(std::span<const uint8_t> bytes, const std::string& name, const DecodeLimits& limits, Wanted wanted) {
  start_vips();
  const ImageFormat format = sniff(bytes, name);
  Image image;
  {
    const std::shared_lock together(error_text_mutex());
    if (try_decode(bytes, format, name, limits, wanted, &image)) return image;
  }
  const std::unique_lock alone(error_text_mutex());
  vips_error_clear();
  vips_warnings().clear();
  if (try_decode(bytes, format, name, limits, wanted, &image)) return image;
  throw Error(ErrorKind::bad_data, fmt::format("decoding '{}' ({} bytes): {}", name, bytes.size(), error_text()),
              "the file is damaged or incomplete; fetch it again or take it out of the folder");
}

}  // namespace

Image decode_image(std::span<const uint8_t> bytes, const std::string& name, const DecodeLimits& limits) {
  return decode(bytes, name, limits, Wanted::colour);
}

Image decode_alpha(std::span<const uint8_t> bytes, const std::string& name, const DecodeLimits& limits) {
  return decode(bytes, name, limits, Wanted::alpha);
}

}  // namespace lorashard
