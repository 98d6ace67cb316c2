// A picture to a training sample: resize, crop, flip, normalise to [-1, 1]. Without buckets the short side becomes the
// resolution and a square is cropped; with them data/bucket_manager says the two sizes.
// The order and rounding of the reference scripts (torchvision Resize, CenterCrop/RandomCrop, RandomHorizontalFlip,
// ToTensor, Normalize([0.5], [0.5])), bit for bit; SDXL's scripts flip before they crop. Where to crop and whether to
// flip come from Philox(seed, slot).
#pragma once
#include <ATen/core/Tensor.h>

#include "data/image.h"
#include "data/image_resize.h"

namespace lorashard {

struct TransformOptions {
  int64_t resolution = 512;
  bool center_crop = false;
  bool random_flip = false;
  bool flip_before_crop = false;  ///< as the SDXL scripts do: crop_left is then a place in the flipped picture
  Interpolation interpolation = Interpolation::lanczos;
};

/// How a picture is framed: it is resized to `resized`, and a part as large as `cropped` is cut out of that.
struct Framing {
  ImageSize resized, cropped;
};

struct TransformedImage {
  ImageSize original_size = {};  ///< of the picture as packed, before the resize (SDXL's time ids)
  Framing framing = {};
  int64_t crop_top = 0, crop_left = 0;
  bool flipped = false;
  bool flip_before_crop = false;  ///< when flipped: crop_left is a place in the flipped picture
};

/// What was cropped of the resized picture before any flip: for masks and whatever else lies on the picture.
Region cropped_region(const TransformedImage& picture);

/// Size after the resize: the short side becomes `resolution`, the long one floor(resolution * long / short)
/// (torchvision).
ImageSize resized_size(ImageSize size, int64_t resolution);

/// The square of side `resolution` out of resized_size().
Framing square_framing(ImageSize size, int64_t resolution);

/// Where a picture of `size` is cropped and whether it is flipped. Needs no pixels. Thread-safe. A random crop takes words
/// w0 and w1 of philox(seed, slot, crop, block 0): of n possible positions, top is (w0 * n) >> 32 and left is (w1 * n)
/// >> 32. A random flip happens when uniform(seed, slot, flip) < 0.5. `class_image` shifts
/// both purposes. options.resolution has no part in it.
TransformedImage plan_transform(ImageSize size, const Framing& framing, const TransformOptions& options, uint64_t seed, uint64_t slot,
                                bool class_image);

/// Resizes, crops and flips by `plan` into `pixel_values`, [3, height, width] of plan.framing.cropped, fp32 in [-1, 1] (contiguous).
/// Thread-safe.
void apply_transform(const Image& image, Interpolation interpolation, const TransformedImage& plan, at::Tensor pixel_values);

/// Both, framed as a square of options.resolution.
TransformedImage transform_image(const Image& image, const TransformOptions& options, uint64_t seed, uint64_t slot,
                                 bool class_image, at::Tensor pixel_values);

}  // namespace lorashard
