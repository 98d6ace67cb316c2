// A batch of pictures and captions to what the UNet is trained on: latents and text embeddings, from the frozen VAE and text
// encoder. In deterministic mode they run one image and one caption a call, since kernels choose their order by batch shape.
#pragma once
#include <ATen/core/Tensor.h>

#include "data/data_loader.h"
#include "models/stable_diffusion.h"

namespace lorashard {

struct Conditioning {
  at::Tensor latents;                ///< [B, 4, h, w], times scaling_factor
  at::Tensor encoder_hidden_states;  ///< [B, 77, cross_attention_dim]
};

/// With `train_text_encoder` the text encoder runs on the whole micro-batch at once, frozen or not: gradients flow back into it.
Conditioning encode(const StableDiffusion& base, const Batch& batch, bool deterministic, bool train_text_encoder = false);

}  // namespace lorashard
