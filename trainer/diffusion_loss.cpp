#include "trainer/diffusion_loss.h"

#include <ATen/ATen.h>

namespace lorashard {
namespace {

/// The batch's noise, and on top of it one number for each channel of an image (crosslabs.org/blog/diffusion-with-offset-noise).
at::Tensor offset_noise(const at::Tensor& latents, const Batch& batch, const LossOptions& options) {
  if (options.noise_offset == 0) return batch.noise;
  if (!options.adaptive_noise_scale) return batch.noise + options.noise_offset * batch.noise_offset;
  const at::Tensor brightness = latents.mean({2, 3}, /*keepdim=*/true).abs();
  const at::Tensor strength = (options.noise_offset + *options.adaptive_noise_scale * brightness).clamp_min(0.0);
  return batch.noise + strength * batch.noise_offset;
}

/// The latents that a prediction of noise or velocity stands for (train_dreambooth_lora_sdxl.py; arXiv 2206.00364, section 5).
at::Tensor denoised(const at::Tensor& prediction, const at::Tensor& noisy_latents, const at::Tensor& sigmas,
                    const std::string& prediction_type) {
  if (prediction_type == "epsilon") return prediction * -sigmas + noisy_latents;
  const at::Tensor variance = sigmas.square() + 1.0;
  return prediction * (-sigmas / variance.sqrt()) + noisy_latents / variance;
}

/// Mean of each image's losses, [B], where the mask lets them count.
at::Tensor masked_mean(const at::Tensor& losses, const at::Tensor& loss_mask, const LossOptions& options) {
  const at::Tensor mask = loss_mask.clamp_min(options.unmasked_weight);
  const at::Tensor means = (losses * mask).mean({1, 2, 3});
  constexpr double kSmallestArea = 1e-6;  // a mask that is black all over gives no loss, not NaN
  return options.normalize_masked_area_loss ? means / mask.mean({1, 2, 3}).clamp_min(kSmallestArea) : means;
}

/// The loss of each image, [R], by the batch's masks and weights.
at::Tensor image_losses(const at::Tensor& model_pred, const at::Tensor& target, const DDPMScheduler& scheduler,
                        const Batch& batch, const LossOptions& options) {
  const at::Tensor losses = elementwise_loss(model_pred, target, scheduler, batch.timesteps, options);
  const at::Tensor means = options.masked_loss ? masked_mean(losses, batch.loss_mask, options) : losses.mean({1, 2, 3});
  return batch.loss_weights.defined() ? means * batch.loss_weights : means;
}

}  // namespace

DiffusionLoss diffusion_loss(const StableDiffusion& base, const Conditioning& conditioning, const Batch& batch,
                             const LossOptions& options, double prior_loss_weight) {
  const DDPMScheduler& scheduler = *base.noise_scheduler;
  const at::Tensor& latents = conditioning.latents;
  DiffusionLoss out;

  // 1. Noise. The input may get more of it than the target knows of.
  out.noise = offset_noise(latents, batch, options);
  const at::Tensor new_noise =
      options.input_perturbation != 0 ? out.noise + options.input_perturbation * batch.input_perturbation : out.noise;

  // 2. What the UNet makes of it, and what it should have made.
  const auto predict = [&](const at::Tensor& input, const at::Tensor& timesteps) {
    return base.unet->forward(input.to(base.dtype), timesteps, conditioning.encoder_hidden_states,
                              {.text_embeds = conditioning.pooled_prompt_embeds, .time_ids = conditioning.add_time_ids});
  };
  if (base.edm_schedule) {
    const EDMSchedulerConfig& edm = *scheduler.config().edm;
    const at::Tensor levels = base.edm_schedule->sigmas(batch.timesteps), sigmas = levels.view({-1, 1, 1, 1});
    out.noisy_latents = latents + sigmas * new_noise;
    out.target = latents;
    const at::Tensor input = edm_precondition_inputs(edm, out.noisy_latents, sigmas);
    out.model_pred = edm_precondition_outputs(edm, scheduler.config().prediction_type, out.noisy_latents,
                                              predict(input, edm_precondition_noise(levels)).to(at::kFloat), sigmas);
  } else if (options.do_edm_style_training) {
    const at::Tensor sigmas = scheduler.sigmas(batch.timesteps).view({-1, 1, 1, 1});
    out.noisy_latents = latents + sigmas * new_noise;
    out.target = latents;
    out.model_pred = denoised(predict(out.noisy_latents / (sigmas.square() + 1.0).sqrt(), batch.timesteps).to(at::kFloat), out.noisy_latents,
                              sigmas, scheduler.config().prediction_type);
  } else {
    out.noisy_latents = scheduler.add_noise(latents, new_noise, batch.timesteps);
    out.target = scheduler.target(latents, out.noise, batch.timesteps);
    out.model_pred = predict(out.noisy_latents, batch.timesteps);
  }

  // 3. How far apart they are. In fp32 whatever the compute type, as the reference scripts do.
  const at::Tensor model_pred = out.model_pred.to(at::kFloat), target = out.target.to(at::kFloat);
  const bool with_class_images = !batch.class_sample_ids.empty();
  const bool plain = options.loss_type == "l2" && !options.masked_loss && !batch.loss_weights.defined();
  const auto num_instances = static_cast<int64_t>(batch.sample_ids.size());
  if (!plain || options.weighs_timesteps()) out.image_losses = image_losses(model_pred, target, scheduler, batch, options);
  if (options.weighs_timesteps()) {
    out.weights = timestep_weights(scheduler, batch.timesteps, options);
    // min-SNR is of instance images only in train_dreambooth_lora_sdxl.py.
    if (with_class_images && !options.do_edm_style_training) out.weights.narrow(0, num_instances, num_instances).fill_(1.0);
    out.image_losses = out.image_losses * out.weights;
  }

  // 4. The mean over the micro-batch; with prior preservation over its instance and its class images.
  const auto mean_over = [&](int64_t first, int64_t count) {
    if (out.image_losses.defined()) return out.image_losses.narrow(0, first, count).mean();
    return at::mse_loss(model_pred.narrow(0, first, count), target.narrow(0, first, count));
  };
  if (!with_class_images) {
    out.loss = mean_over(0, num_instances);
    return out;
  }
  out.instance_loss = mean_over(0, num_instances);
  out.prior_loss = mean_over(num_instances, num_instances);
  out.loss = out.instance_loss + out.prior_loss * prior_loss_weight;
  return out;
}

}  // namespace lorashard
