#include "data/image_write.h"

#include <vips/vips.h>

#include <memory>

#include "data/vips_library.h"
#include "dist/error.h"

namespace lorashard {
namespace {

struct Unref {
  void operator()(VipsImage* image) const { g_object_unref(image); }
};
using VipsPointer = std::unique_ptr<VipsImage, Unref>;

struct Free {
  void operator()(void* memory) const { g_free(memory); }
};

/// Loading SVG is allowed while this lives: decoding pictures switches off every format whose loader isn't hardened.
struct AllowSvg {
  AllowSvg() { vips_operation_block_set("VipsForeignLoadSvg", FALSE); }
  ~AllowSvg() { vips_operation_block_set("VipsForeignLoadSvg", TRUE); }
};

/// The Error of the vips call that failed last in this thread.
Error vips_failure(const std::string& doing_what) {
  std::string reason = vips_error_buffer();
  vips_error_clear();
  while (!reason.empty() && reason.back() == '\n') reason.pop_back();
  return Error(ErrorKind::internal, fmt::format("{}: {}", doing_what, reason));
}

}  // namespace

std::vector<uint8_t> encode_png(const Image& image) {
  start_vips();
  const VipsPointer source(vips_image_new_from_memory(image.rgb.data(), image.rgb.size(), static_cast<int>(image.width),
                                                      static_cast<int>(image.height), 3, VIPS_FORMAT_UCHAR));
  if (!source) throw vips_failure("writing a PNG");
  void* data = nullptr;
  size_t size = 0;
  if (vips_pngsave_buffer(source.get(), &data, &size, "strip", TRUE, nullptr) != 0) throw vips_failure("writing a PNG");
  const std::unique_ptr<void, Free> owner(data);
  return {static_cast<uint8_t*>(data), static_cast<uint8_t*>(data) + size};
}

Image render_svg(const std::string& svg, double scale) {
  start_vips();
  // Pictures inside the drawing go beyond the parser's default limits; the drawing is our own, so they may.
  VipsImage* drawn = nullptr;
  const AllowSvg allowed;
  if (vips_svgload_buffer(const_cast<char*>(svg.data()), svg.size(), &drawn, "scale", scale, "unlimited", TRUE,
                          nullptr) != 0) {
    throw vips_failure("drawing an SVG");
  }
  const VipsPointer drawing(drawn);
  const double white[3] = {255, 255, 255};
  VipsArrayDouble* background = vips_array_double_new(white, 3);
  VipsImage* flat = nullptr;
  const int failed = vips_flatten(drawing.get(), &flat, "background", background, nullptr);
  vips_area_unref(VIPS_AREA(background));
  if (failed != 0) throw vips_failure("drawing an SVG");
  const VipsPointer flattened(flat);

  size_t size = 0;
  const std::unique_ptr<void, Free> pixels(vips_image_write_to_memory(flattened.get(), &size));
  if (!pixels) throw vips_failure("drawing an SVG");
  const auto* bytes = static_cast<const uint8_t*>(pixels.get());
  Image image{vips_image_get_height(flattened.get()), vips_image_get_width(flattened.get()), {bytes, bytes + size}};
  LORASHARD_CHECK(size == static_cast<size_t>(image.height * image.width * 3), "an SVG drawn in {} bytes", size);
  return image;
}

std::string png_data_uri(const Image& image) {
  const auto png = encode_png(image);
  const std::unique_ptr<char, Free> text(g_base64_encode(png.data(), png.size()));
  return std::string("data:image/png;base64,") + text.get();
}

}  // namespace lorashard
