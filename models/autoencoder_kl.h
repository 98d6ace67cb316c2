// diffusers' AutoencoderKL (models/autoencoders/autoencoder_kl.py and vae.py): pictures to latents and back.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>

#include "models/layers.h"
#include "models/model_config.h"
#include "models/safetensors.h"

namespace lorashard {

class VaeEncoder;
class VaeDecoder;

class AutoencoderKL : public torch::nn::Module {
 public:
  explicit AutoencoderKL(const AutoencoderKLConfig& config);
  /// [B, 3, H, W] in [-1, 1] -> moments [B, 2 * latent_channels, H/8, W/8]: mean, then logvar (not clamped).
  at::Tensor encode_moments(const at::Tensor& pixel_values) const;
  /// Latents not scaled: unscale_latents() before. [B, latent_channels, h, w] -> [B, 3, 8h, 8w].
  at::Tensor decode(const at::Tensor& latents) const;
  const AutoencoderKLConfig& config() const { return config_; }

 private:
  AutoencoderKLConfig config_;
  std::shared_ptr<VaeEncoder> encoder_;
  std::shared_ptr<VaeDecoder> decoder_;
  std::shared_ptr<Conv2d> quant_conv_, post_quant_conv_;
};

/// DiagonalGaussianDistribution.sample(): mean + exp(0.5 * clamp(logvar, -30, 20)) * vae_noise. `moments` [B, 2C, h, w].
at::Tensor sample_latents(const at::Tensor& moments, const at::Tensor& vae_noise);

/// Latents as the UNet knows them, from the VAE's: times scaling_factor, before that made standard where the config has latents_mean
/// and latents_std. And back. [B, latent_channels, h, w].
at::Tensor scale_latents(const AutoencoderKLConfig& config, const at::Tensor& latents);
at::Tensor unscale_latents(const AutoencoderKLConfig& config, const at::Tensor& latents);

/// Keys as this module names them, from the old spelling of attention ("query", "key", "value", "proj_attn", 1x1 convolutions too).
StateDict normalise_vae_keys(const StateDict& state);

}  // namespace lorashard
