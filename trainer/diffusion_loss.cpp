#include "trainer/diffusion_loss.h"

#include <ATen/ATen.h>

namespace lorashard {

DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch,
                             double prior_loss_weight) {
  const at::Tensor& latents = conditioning.latents;
  DiffusionLoss out;
  out.noisy_latents = base.noise_scheduler->add_noise(latents, batch.noise, batch.timesteps);
  out.target = base.noise_scheduler->target(latents, batch.noise, batch.timesteps);
  out.model_pred =
      base.unet->forward(out.noisy_latents.to(base.dtype), batch.timesteps, conditioning.encoder_hidden_states,
                         {.text_embeds = conditioning.pooled_prompt_embeds, .time_ids = conditioning.add_time_ids});
  // In fp32 whatever the compute type, as the reference scripts do.
  const at::Tensor model_pred = out.model_pred.to(at::kFloat), target = out.target.to(at::kFloat);
  if (batch.class_sample_ids.empty()) {
    out.loss = at::mse_loss(model_pred, target);
    return out;
  }
  const auto num_instances = static_cast<int64_t>(batch.sample_ids.size());
  const auto mean_over = [&](int64_t first) {
    return at::mse_loss(model_pred.narrow(0, first, num_instances), target.narrow(0, first, num_instances));
  };
  out.instance_loss = mean_over(0);
  out.prior_loss = mean_over(num_instances);
  out.loss = out.instance_loss + out.prior_loss * prior_loss_weight;
  return out;
}

}  // namespace lorashard
