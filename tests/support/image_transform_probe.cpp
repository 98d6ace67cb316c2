// Runs data/image_resize and data/image_transform for tests/oracle/test_image_transform.py. stdin: a line of words,
// then the RGB bytes of a picture; over and over. stdout: the answer's bytes, of a length the caller knows.
//   resize HEIGHT WIDTH  NEW_HEIGHT NEW_WIDTH  TOP LEFT REGION_HEIGHT REGION_WIDTH  INTERPOLATION portable|fastest
//   transform HEIGHT WIDTH  RESOLUTION CENTER_CROP RANDOM_FLIP FLIP_BEFORE_CROP  INTERPOLATION SEED SLOT
//     -> int64 crop_top, crop_left, flipped; fp32 [3, RESOLUTION, RESOLUTION]
#include <ATen/ATen.h>

#include <iostream>
#include <sstream>
#include <string>

#include "data/image_resize.h"
#include "data/image_resize_kernels.h"
#include "data/image_transform.h"

namespace lorashard {
namespace {

Image read_image(std::istream& words) {
  Image image;
  words >> image.height >> image.width;
  image.rgb.resize(image.height * image.width * 3);
  std::cin.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()));
  return image;
}

void write(const void* data, size_t bytes) {
  std::cout.write(static_cast<const char*>(data), static_cast<std::streamsize>(bytes));
}

void answer(std::istream& words) {
  std::string command, interpolation;
  words >> command;
  const Image image = read_image(words);
  if (command == "resize") {
    ImageSize size;
    Region region;
    std::string kernels;
    words >> size.height >> size.width >> region.top >> region.left >> region.height >> region.width >> interpolation >>
        kernels;
    const auto& chosen = kernels == "portable" ? portable_resize_kernels() : fastest_resize_kernels();
    const Image out = resize_region(image, size, region, parse_interpolation(interpolation), &chosen);
    write(out.rgb.data(), out.rgb.size());
  } else {
    TransformOptions options;
    uint64_t seed = 0, slot = 0;
    words >> options.resolution >> options.center_crop >> options.random_flip >> options.flip_before_crop >>
        interpolation >> seed >> slot;
    options.interpolation = parse_interpolation(interpolation);
    const auto pixel_values = at::empty({3, options.resolution, options.resolution}, at::kFloat);
    const auto done = transform_image(image, options, seed, slot, false, pixel_values);
    const int64_t where[3] = {done.crop_top, done.crop_left, done.flipped};
    write(where, sizeof where);
    write(pixel_values.const_data_ptr(), pixel_values.nbytes());
  }
  std::cout.flush();
}

}  // namespace
}  // namespace lorashard

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    lorashard::answer(words);
  }
  return 0;
}
