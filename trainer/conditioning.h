// A batch of pictures and captions to what the UNet is trained on: latents and text embeddings, from the frozen VAE and text
// encoder. In deterministic mode they run one image and one caption a call, since kernels choose their order by batch shape.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "data/data_loader.h"
#include "models/stable_diffusion.h"

namespace lorashard {

class TextCache;

struct Conditioning {
  at::Tensor latents;                ///< [B, 4, h, w], times scaling_factor
  at::Tensor encoder_hidden_states;  ///< [B, 77, cross_attention_dim]; SDXL: of both text encoders, side by side
  at::Tensor pooled_prompt_embeds;   ///< SDXL: [B, projection_dim] of the second text encoder; otherwise undefined
  at::Tensor add_time_ids;           ///< SDXL: fp32 [B, 6]; otherwise undefined
};

/// What the text encoders make of a caption, in the base's type.
struct TextEmbedding {
  at::Tensor encoder_hidden_states;  ///< [B, 77, cross_attention_dim]
  at::Tensor pooled_prompt_embeds;   ///< SDXL: [B, projection_dim]; otherwise undefined
};

/// The VAE's moments of `pixel_values` [B, 3, H, W]: fp32 [B, 2C, h, w], whatever the VAE's type. No gradient.
at::Tensor encode_moments(const StableDiffusion& base, const at::Tensor& pixel_values, bool deterministic);

/// `input_ids` and, for SDXL, `input_ids_2` int64 [B, 77]; `one_by_one`: one caption a call.
TextEmbedding encode_text(const StableDiffusion& base, const at::Tensor& input_ids, const at::Tensor& input_ids_2, bool one_by_one);

/// `texts` gives the embeddings it has of the batch's captions; the others are encoded. With `train_text_encoder` the text encoder runs on the whole micro-batch at once, and gradients flow back into it.
Conditioning encode(const StableDiffusion& base, const Batch& batch, bool deterministic, bool train_text_encoder = false,
                    const TextCache* texts = nullptr);

/// compute_time_ids() of train_text_to_image_lora_sdxl.py: original height, width; crop top, left; target height, width.
/// fp32 [B, 6] whatever the compute type: the script's bf16 would round 1001 to 1000.
at::Tensor compute_time_ids(const std::vector<TransformedImage>& images, int64_t target_height, int64_t target_width);

}  // namespace lorashard
