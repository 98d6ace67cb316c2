// The loss of one micro-batch: noise the latents, predict, compare (train_text_to_image_lora.py of diffusers 0.42.1).
#pragma once
#include <ATen/core/Tensor.h>

#include "data/data_loader.h"
#include "models/stable_diffusion.h"
#include "trainer/conditioning.h"

namespace lorashard {

struct DiffusionLoss {
  at::Tensor noisy_latents, target, model_pred;  ///< [B, 4, h, w]
  at::Tensor loss;                               ///< fp32 scalar: mean squared error over the micro-batch
};

DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch);

}  // namespace lorashard
