#include "models/text_to_image.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <fmt/core.h>

#include <algorithm>
#include <span>

#include "dist/error.h"
#include "dist/philox.h"
#include "models/sampling_scheduler.h"

namespace lorashard {
namespace {

/// Sides of a picture come in multiples of this: pixels a latent, times what the UNet halves.
int64_t side_multiple(const StableDiffusion& base) {
  return base.vae_scale_factor() << (base.unet->config().block_out_channels.size() - 1);
}

void require_side(const StableDiffusion& base, const char* what, int64_t side) {
  const int64_t multiple = side_multiple(base);
  if (side > 0 && side % multiple == 0) return;
  const int64_t below = std::max<int64_t>(side / multiple, 1) * multiple;
  throw Error(
      ErrorKind::usage,
      fmt::format("making a picture: {} {} is not a multiple of {}, as the base's layers need", what, side, multiple),
      side < multiple ? fmt::format("{} would do", below) : fmt::format("{} or {} would do", below, below + multiple));
}

/// Where the UNet's weights are, and so where pictures are made.
at::Device device_of(const StableDiffusion& base) { return base.unet->named_parameters().front().value().device(); }

/// What the UNet is told of the prompt: [1, L, D], with guidance [2, L, D], the negative prompt first.
at::Tensor encode_prompt(const StableDiffusion& base, const TextToImageOptions& options, bool with_guidance) {
  // One text a call, as in training: kernels choose by the batch's shape.
  const auto encode = [&](const std::string& text) {
    const at::Tensor input_ids = (*base.tokenizer)({text}).to(device_of(base));
    return base.text_encoder->forward(input_ids).last_hidden_state.to(base.dtype);
  };
  const at::Tensor embeds = encode(options.prompt);
  return with_guidance ? at::cat({encode(options.negative_prompt), embeds}) : embeds;
}

std::unique_ptr<SamplingScheduler> scheduler_of(const StableDiffusion& base, const TextToImageOptions& options) {
  return make_sampling_scheduler(options.scheduler, sampling_config_of(base), options.num_inference_steps,
                                 options.use_karras_sigmas);
}

}  // namespace

SamplingConfig sampling_config_of(const StableDiffusion& base) {
  const auto file = base.folder / "scheduler" / "scheduler_config.json";
  SamplingConfig config;
  if (std::filesystem::is_regular_file(file)) {
    config = read_sampling_config(file);
    // StableDiffusionPipeline.__init__ corrects two outdated settings, where a file has them.
    if (config.steps_offset) config.steps_offset = 1;
    if (config.clip_sample) config.clip_sample = false;
  } else {
    config.steps_offset = 1;
    config.set_alpha_to_one = config.clip_sample = false;
    config.skip_prk_steps = true;
  }
  config.schedule = base.noise_scheduler->config();
  return config;
}

TextToImageOptions checked_options(const StableDiffusion& base, TextToImageOptions options) {
  const int64_t usual = base.unet->config().sample_size * base.vae_scale_factor();
  if (options.height == 0) options.height = usual;
  if (options.width == 0) options.width = usual;
  require_side(base, "height", options.height);
  require_side(base, "width", options.width);
  scheduler_of(base, options);
  return options;
}

at::Tensor initial_noise(const StableDiffusion& base, const TextToImageOptions& options, uint64_t number) {
  const int64_t factor = base.vae_scale_factor();
  at::Tensor noise =
      at::empty({1, base.vae->config().latent_channels, options.height / factor, options.width / factor}, at::kFloat);
  fill_normal(std::span<float>(noise.mutable_data_ptr<float>(), static_cast<size_t>(noise.numel())), options.seed,
              number, Purpose::sampling_noise);
  return noise;
}

at::Tensor denoise(const StableDiffusion& base, const TextToImageOptions& options, const at::Tensor& noise,
                   const SamplingProgress& progress) {
  const at::NoGradGuard no_grad;
  const at::Device device = device_of(base);
  const bool with_guidance = options.guidance_scale > 1;
  const auto scheduler = scheduler_of(base, options);
  const at::Tensor prompt_embeds = encode_prompt(base, options, with_guidance);
  const auto calls = static_cast<int64_t>(scheduler->timesteps().size());

  at::Tensor latents = noise.to(device) * scheduler->init_noise_sigma();
  for (const float timestep : scheduler->timesteps()) {
    if (progress && !progress(static_cast<int64_t>(scheduler->step()), calls))
      throw Error(ErrorKind::stopped, "making a picture: stopped on request");
    // 1. One batch of two with guidance: without the prompt, and with it.
    const at::Tensor shown = with_guidance ? at::cat({latents, latents}) : latents;
    const at::Tensor input = scheduler->scale_model_input(shown).to(base.dtype);
    const at::Tensor timesteps = at::full({input.size(0)}, timestep, at::dtype(at::kFloat).device(device));
    at::Tensor prediction = base.unet->forward(input, timesteps, prompt_embeds).to(at::kFloat);

    // 2. Away from what the negative prompt predicts.
    if (with_guidance) {
      const auto halves = prediction.chunk(2);
      prediction = halves[0] + options.guidance_scale * (halves[1] - halves[0]);
    }

    // 3. One step towards the picture.
    latents = scheduler->step(prediction, latents);
  }
  return latents;
}

at::Tensor decode_latents(const StableDiffusion& base, const at::Tensor& latents) {
  const at::NoGradGuard no_grad;
  const at::Tensor scaled = latents / base.vae->config().scaling_factor;
  const at::Tensor decoded = base.vae->decode(scaled.to(base.vae->named_parameters().front().value().scalar_type()));
  const at::Tensor image = (decoded.to(at::kCPU, at::kFloat) / 2 + 0.5).clamp(0, 1);
  if (image.isnan().any().item<bool>())
    throw Error(ErrorKind::non_finite, "making a picture: its pixels are NaN",
                "lower guidance_scale, or use mixed_precision = \"no\"");
  return (image[0].permute({1, 2, 0}) * 255).round().to(at::kByte).contiguous();
}

at::Tensor text_to_image(const StableDiffusion& base, const TextToImageOptions& options, uint64_t number,
                         const SamplingProgress& progress) {
  const TextToImageOptions checked = checked_options(base, options);
  return decode_latents(base, denoise(base, checked, initial_noise(base, checked, number), progress));
}

}  // namespace lorashard
