// Where in a picture the loss counts: its mask, resized, cropped and flipped as the picture was, then averaged over the
// pixels of each latent. Called by the loader's threads.
#pragma once
#include <cstdint>
#include <span>

#include "data/image.h"
#include "data/image_transform.h"

namespace lorashard {

/// Writes the mean of the mask's red channel over the pixels of each latent, in [0, 1], to `out` (row-major [height, width] of the
/// picture's crop divided by `vae_scale_factor`, the side of a latent in pixels). `picture` says how the picture, as large as the
/// mask, was resized, cropped and flipped. The mask is resized by area (Interpolation::box). Thread-safe.
void write_loss_mask(const Image& mask, const TransformedImage& picture, int64_t vae_scale_factor, std::span<float> out);

}  // namespace lorashard
