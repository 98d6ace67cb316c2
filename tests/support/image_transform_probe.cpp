// Runs data/image_resize and data/image_transform for tests/oracle/test_image_transform.py. stdin: a line of words,
// then the RGB bytes of a picture; over and over. stdout: the answer's bytes, of a length the caller knows.
//   resize HEIGHT WIDTH  NEW_HEIGHT NEW_WIDTH  TOP LEFT REGION_HEIGHT REGION_WIDTH  INTERPOLATION portable|fastest
//   transform HEIGHT WIDTH  RESOLUTION CENTER_CROP RANDOM_FLIP FLIP_BEFORE_CROP  INTERPOLATION SEED SLOT
//     -> int64 crop_top, crop_left, flipped; fp32 [3, RESOLUTION, RESOLUTION]
//   frame HEIGHT WIDTH  RESIZED_HEIGHT RESIZED_WIDTH  CROPPED_HEIGHT CROPPED_WIDTH  CENTER_CROP ... SEED SLOT as above
//     -> the same, [3, CROPPED_HEIGHT, CROPPED_WIDTH]
//   bucket HEIGHT WIDTH  RESOLUTION MIN_BUCKET_RESO MAX_BUCKET_RESO BUCKET_RESO_STEPS BUCKET_NO_UPSCALE    (no picture
//   follows)
//     -> int64 height and width resized to, height and width cropped to; all 0 where the picture is refused
//   covering HEIGHT WIDTH  BUCKET_HEIGHT BUCKET_WIDTH    (no picture follows)
//     -> the same
#include <ATen/ATen.h>

#include <iostream>
#include <sstream>
#include <string>

#include "data/bucket_manager.h"
#include "data/image_resize.h"
#include "data/image_resize_kernels.h"
#include "data/image_transform.h"
#include "dist/error.h"

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

void write(const TransformedImage& done, const at::Tensor& pixel_values) {
  const int64_t where[3] = {done.crop_top, done.crop_left, done.flipped};
  write(where, sizeof where);
  write(pixel_values.const_data_ptr(), pixel_values.nbytes());
}

Framing frame_in_bucket(const std::string& command, std::istream& words) {
  ImageSize size, bucket;
  words >> size.height >> size.width;
  if (command == "covering") {
    words >> bucket.height >> bucket.width;
    return covering(size, bucket);
  }
  BucketOptions options;
  words >> options.resolution >> options.min_bucket_reso >> options.max_bucket_reso >> options.bucket_reso_steps >>
      options.bucket_no_upscale;
  try {
    return BucketManager(options).select_bucket(size, "the picture");
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::bad_data) throw;
    return {};
  }
}

void answer(std::istream& words) {
  std::string command, interpolation;
  words >> command;
  if (command == "bucket" || command == "covering") {
    const auto [resized, cropped] = frame_in_bucket(command, words);
    const int64_t sizes[4] = {resized.height, resized.width, cropped.height, cropped.width};
    write(sizes, sizeof sizes);
    std::cout.flush();
    return;
  }
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
  } else if (command == "frame") {
    Framing framing;
    TransformOptions options;
    uint64_t seed = 0, slot = 0;
    words >> framing.resized.height >> framing.resized.width >> framing.cropped.height >> framing.cropped.width >>
        options.center_crop >> options.random_flip >> options.flip_before_crop >> interpolation >> seed >> slot;
    options.interpolation = parse_interpolation(interpolation);
    const auto pixel_values = at::empty({3, framing.cropped.height, framing.cropped.width}, at::kFloat);
    const auto plan = plan_transform({image.height, image.width}, framing, options, seed, slot, false);
    apply_transform(image, options.interpolation, plan, pixel_values);
    write(plan, pixel_values);
  } else {
    TransformOptions options;
    uint64_t seed = 0, slot = 0;
    words >> options.resolution >> options.center_crop >> options.random_flip >> options.flip_before_crop >>
        interpolation >> seed >> slot;
    options.interpolation = parse_interpolation(interpolation);
    const auto pixel_values = at::empty({3, options.resolution, options.resolution}, at::kFloat);
    write(transform_image(image, options, seed, slot, false, pixel_values), pixel_values);
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
