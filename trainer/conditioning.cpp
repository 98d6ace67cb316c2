#include "trainer/conditioning.h"

#include <ATen/ATen.h>

#include <optional>
#include <vector>

#include "trainer/text_cache.h"

namespace lorashard {
namespace {

// Kernels choose their blocking by batch shape, so a picture encoded in a batch of 4 differs in the last bits from the same
// picture alone. Where bits matter, every row goes through by itself.
template <class F>
at::Tensor map_rows(const at::Tensor& batch, bool one_by_one, F&& f) {
  if (!one_by_one || batch.size(0) == 1) return f(batch);
  std::vector<at::Tensor> rows;
  for (int64_t i = 0; i < batch.size(0); ++i) rows.push_back(f(batch.narrow(0, i, 1)));
  return at::cat(rows);
}

/// Cached embeddings of the captions, in their order; what the cache lacks is encoded, one caption a call as it was for the cache.
TextEmbedding find_or_encode(const StableDiffusion& base, const Batch& batch, const TextCache& texts) {
  std::vector<at::Tensor> hidden_states, pooled;
  for (size_t i = 0; i < batch.captions.size(); ++i) {
    std::optional<TextEmbedding> text = texts.find(batch.captions[i]);
    if (!text) {
      const auto row = [i](const at::Tensor& ids) { return ids.defined() ? ids.narrow(0, static_cast<int64_t>(i), 1) : ids; };
      text = encode_text(base, row(batch.input_ids), row(batch.input_ids_2), /*one_by_one=*/true);
    }
    hidden_states.push_back(text->encoder_hidden_states.to(base.device));
    if (text->pooled_prompt_embeds.defined()) pooled.push_back(text->pooled_prompt_embeds.to(base.device));
  }
  return {at::cat(hidden_states), pooled.empty() ? at::Tensor() : at::cat(pooled)};
}

}  // namespace

at::Tensor encode_moments(const StableDiffusion& base, const at::Tensor& pixel_values, bool deterministic) {
  const at::NoGradGuard no_grad;
  // Latents stay fp32 whatever the base's type: the noise is added in fp32.
  return map_rows(pixel_values, deterministic, [&](const at::Tensor& pixels) {
    return base.vae->encode_moments(pixels.to(base.vae_dtype)).to(at::kFloat);
  });
}

TextEmbedding encode_text(const StableDiffusion& base, const at::Tensor& input_ids, const at::Tensor& input_ids_2, bool one_by_one) {
  if (!base.is_sdxl()) {
    return {map_rows(input_ids, one_by_one,
                     [&](const at::Tensor& ids) { return base.text_encoder->forward(ids, base.clip_skip).last_hidden_state; }),
            {}};
  }
  // encode_prompt() of train_text_to_image_lora_sdxl.py: the states before each encoder's last layer, and the second's projected pooled
  // output.
  const at::Tensor first = map_rows(input_ids, one_by_one, [&](const at::Tensor& ids) {
    return base.text_encoder->forward(ids, base.clip_skip).penultimate_hidden_state;
  });
  std::vector<at::Tensor> pooled;
  const at::Tensor second = map_rows(input_ids_2, one_by_one, [&](const at::Tensor& ids) {
    const CLIPTextOutput text = base.text_encoder_2->forward(ids, base.clip_skip);
    pooled.push_back(text.pooled);
    return text.penultimate_hidden_state;
  });
  return {at::cat({first, second}, -1), at::cat(pooled)};
}

Conditioning encode(const StableDiffusion& base, const Batch& batch, bool deterministic, bool train_text_encoder, const TextCache* texts) {
  Conditioning out;
  const at::Tensor moments =
      batch.moments.defined() ? batch.moments : encode_moments(base, batch.pixel_values, deterministic);
  out.latents = scale_latents(base.vae->config(), sample_latents(moments, batch.vae_noise));

  // A trained text encoder is a function of its micro-batch like the UNet, so it needs no one-by-one to give the same bits.
  const at::AutoGradMode with_grad(train_text_encoder);
  const bool one_by_one = deterministic && !train_text_encoder;
  const TextEmbedding text =
      texts ? find_or_encode(base, batch, *texts) : encode_text(base, batch.input_ids, batch.input_ids_2, one_by_one);
  out.encoder_hidden_states = text.encoder_hidden_states;
  out.pooled_prompt_embeds = text.pooled_prompt_embeds;
  if (base.is_sdxl()) {
    const int64_t pixels = base.vae_scale_factor();
    out.add_time_ids = compute_time_ids(batch.images, out.latents.size(2) * pixels, out.latents.size(3) * pixels).to(base.device);
  }
  return out;
}

at::Tensor compute_time_ids(const std::vector<TransformedImage>& images, int64_t target_height, int64_t target_width) {
  at::Tensor time_ids = at::empty({static_cast<int64_t>(images.size()), 6}, at::kFloat);
  float* out = time_ids.mutable_data_ptr<float>();
  for (const TransformedImage& image : images) {
    for (const int64_t value : {image.original_size.height, image.original_size.width, image.crop_top, image.crop_left,
                                target_height, target_width}) {
      *out++ = static_cast<float>(value);
    }
  }
  return time_ids;
}

}  // namespace lorashard
