#include "trainer/diffusion_loss.h"

#include <ATen/ATen.h>

namespace lorashard {

DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch) {
  const at::Tensor& latents = conditioning.latents;
  DiffusionLoss out;
  out.noisy_latents = base.noise_scheduler->add_noise(latents, batch.noise, batch.timesteps);
  out.target = base.noise_scheduler->target(latents, batch.noise, batch.timesteps);
  out.model_pred =
      base.unet->forward(out.noisy_latents.to(base.dtype), batch.timesteps, conditioning.encoder_hidden_states,
                         {.text_embeds = conditioning.pooled_prompt_embeds, .time_ids = conditioning.add_time_ids});
  // In fp32 whatever the compute type, as the reference scripts do.
  out.loss = at::mse_loss(out.model_pred.to(at::kFloat), out.target.to(at::kFloat));
  return out;
}

}  // namespace lorashard
