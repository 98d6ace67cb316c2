#include "trainer/conditioning.h"

#include <ATen/ATen.h>

#include <vector>

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

/// encode_prompt() of train_text_to_image_lora_sdxl.py: the states before each encoder's last layer, and the second's
/// projected pooled output.
void encode_prompt_sdxl(const StableDiffusion& base, const Batch& batch, bool one_by_one, Conditioning& out) {
  const at::Tensor first = map_rows(batch.input_ids, one_by_one, [&](const at::Tensor& input_ids) {
    return base.text_encoder->forward(input_ids).penultimate_hidden_state;
  });
  std::vector<at::Tensor> pooled;
  const at::Tensor second = map_rows(batch.input_ids_2, one_by_one, [&](const at::Tensor& input_ids) {
    const CLIPTextOutput text = base.text_encoder_2->forward(input_ids);
    pooled.push_back(text.pooled);
    return text.penultimate_hidden_state;
  });
  out.encoder_hidden_states = at::cat({first, second}, -1);
  out.pooled_prompt_embeds = at::cat(pooled);
  out.add_time_ids = compute_time_ids(batch.images, batch.pixel_values.size(2), batch.pixel_values.size(3));
}

Conditioning encode_pictures(const StableDiffusion& base, const Batch& batch, bool deterministic) {
  const at::NoGradGuard no_grad;
  // Latents stay fp32 whatever the base's type: the noise is added in fp32.
  const at::Tensor moments = map_rows(batch.pixel_values, deterministic, [&](const at::Tensor& pixels) {
    return base.vae->encode_moments(pixels.to(base.vae_dtype)).to(at::kFloat);
  });
  Conditioning out;
  out.latents = sample_latents(moments, batch.vae_noise) * base.vae->config().scaling_factor;
  return out;
}

}  // namespace

Conditioning encode(const StableDiffusion& base, const Batch& batch, bool deterministic, bool train_text_encoder) {
  Conditioning out = encode_pictures(base, batch, deterministic);
  // A trained text encoder is a function of its micro-batch like the UNet, so it needs no one-by-one to give the same bits.
  const at::AutoGradMode with_grad(train_text_encoder);
  const bool one_by_one = deterministic && !train_text_encoder;
  if (base.is_sdxl()) {
    encode_prompt_sdxl(base, batch, one_by_one, out);
  } else {
    out.encoder_hidden_states = map_rows(batch.input_ids, one_by_one, [&](const at::Tensor& input_ids) {
      return base.text_encoder->forward(input_ids).last_hidden_state;
    });
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
