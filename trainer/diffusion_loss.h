// The loss of one micro-batch: noise the latents, predict, compare (train_text_to_image_lora.py and, with class images,
// train_dreambooth_lora.py of diffusers 0.42.1).
#pragma once
#include <ATen/core/Tensor.h>

#include "data/data_loader.h"
#include "models/stable_diffusion.h"
#include "trainer/conditioning.h"

namespace lorashard {

struct DiffusionLoss {
  at::Tensor noisy_latents, target, model_pred;  ///< [R, 4, h, w]
  at::Tensor loss;                               ///< fp32 scalar: mean squared error over the micro-batch
  at::Tensor instance_loss, prior_loss;          ///< fp32 scalars, with class images only
};

/// With class images in the batch: loss = instance_loss + prior_loss_weight * prior_loss, each the mean over its own rows.
DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch,
                             double prior_loss_weight = 1);

}  // namespace lorashard
