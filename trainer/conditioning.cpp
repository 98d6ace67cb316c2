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

Conditioning encode_pictures(const StableDiffusion& base, const Batch& batch, bool deterministic) {
  const at::NoGradGuard no_grad;
  // Latents stay fp32 whatever the base's type: the noise is added in fp32.
  const at::Tensor moments = map_rows(batch.pixel_values, deterministic, [&](const at::Tensor& pixels) {
    return base.vae->encode_moments(pixels.to(base.dtype)).to(at::kFloat);
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
  out.encoder_hidden_states = map_rows(batch.input_ids, deterministic && !train_text_encoder, [&](const at::Tensor& input_ids) {
    return base.text_encoder->forward(input_ids).last_hidden_state;
  });
  return out;
}

}  // namespace lorashard
