// A prompt to a picture: __call__ of diffusers' StableDiffusionPipeline (without its safety checker) and
// StableDiffusionXLPipeline (without a watermark). Validation, `lorashard generate` and DreamBooth's class pictures
// call it. A picture is a pure function of the base (with the LoRA it carries), the options and its number, whoever
// makes it: one picture a call.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <string>

#include "models/sampling_config.h"
#include "models/stable_diffusion.h"

namespace lorashard {

struct TextToImageOptions {
  std::string prompt,
      negative_prompt = {};       ///< SDXL: an empty negative prompt means zeros, as its pipeline does by default
  int64_t height = 0, width = 0;  ///< pixels; 0: what the base was made for
  int64_t num_inference_steps = 25;
  double guidance_scale = 7.5;            ///< 1 or less: no guidance, and negative_prompt has no meaning
  std::string scheduler = "dpmsolver++";  ///< models/sampling_scheduler.h
  bool use_karras_sigmas = false;
  int64_t clip_skip = 0;  ///< last layers of the text encoders that aren't used; of the prompt alone, as the pipelines have it
  uint64_t seed = 0;
};

/// Called before each call of the UNet with the calls done and the calls there will be; false: stop.
using SamplingProgress = std::function<bool(int64_t done, int64_t calls)>;

/// Height and width filled in. Throws Error(usage) for what no picture can be made with: sizes the UNet can't have, an
/// unknown scheduler, steps beyond its timesteps, more layers skipped than there are; Error(bad_data) for a scheduler_config.json this can't follow.
TextToImageOptions checked_options(const StableDiffusion& base, TextToImageOptions options);

/// Picture `number` of `options.seed`: uint8 [height, width, 3], RGB, on the CPU. Throws as checked_options(), and
/// Error(stopped) when `progress` says so, Error(non_finite) for a picture of NaN. Not thread-safe for one base.
at::Tensor text_to_image(const StableDiffusion& base, const TextToImageOptions& options, uint64_t number,
                         const SamplingProgress& progress = {});

// Its parts, for those who hold one of them against diffusers.

/// Standard normal noise, fp32 [1, latent_channels, height / 8, width / 8], from Philox(seed, number, sampling_noise).
at::Tensor initial_noise(const StableDiffusion& base, const TextToImageOptions& options, uint64_t number);
/// From noise (before the scheduler's scaling) to latents, fp32, as the VAE made them in training (times
/// scaling_factor).
at::Tensor denoise(const StableDiffusion& base, const TextToImageOptions& options, const at::Tensor& noise,
                   const SamplingProgress& progress = {});
/// Latents [1, C, h, w] to uint8 [8h, 8w, 3], rounded as diffusers' VaeImageProcessor does.
at::Tensor decode_latents(const StableDiffusion& base, const at::Tensor& latents);
/// The sampling settings of `base`, as its pipeline corrects them; Stable Diffusion's own where it has no
/// scheduler_config.json.
SamplingConfig sampling_config_of(const StableDiffusion& base);

}  // namespace lorashard
