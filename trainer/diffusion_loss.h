// The loss of one micro-batch: noise the latents, predict, compare (train_text_to_image_lora.py and, with class images,
// train_dreambooth_lora.py of diffusers 0.42.1), with the options of trainer/loss_weights.h.
#pragma once
#include <ATen/core/Tensor.h>

#include "data/data_loader.h"
#include "models/stable_diffusion.h"
#include "trainer/conditioning.h"
#include "trainer/loss_weights.h"

namespace lorashard {

struct DiffusionLoss {
  at::Tensor noise;          ///< [R, 4, h, w] what is added, with noise_offset
  at::Tensor noisy_latents;  ///< [R, 4, h, w] with input_perturbation
  at::Tensor target, model_pred;  ///< [R, 4, h, w]
  at::Tensor weights;        ///< fp32 [R] by the images' timesteps; undefined where all are 1
  at::Tensor image_losses;   ///< fp32 [R] weighted; undefined where the loss is a plain mean over the micro-batch
  at::Tensor loss;           ///< fp32 scalar: mean over the micro-batch
  at::Tensor instance_loss, prior_loss;  ///< fp32 scalars, with class images only
};

/// With class images in the batch: loss = instance_loss + prior_loss_weight * prior_loss, each the mean over its own rows.
DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch,
                             const LossOptions& options, double prior_loss_weight = 1);

}  // namespace lorashard
