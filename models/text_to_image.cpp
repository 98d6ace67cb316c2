#include "models/text_to_image.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros_like.h>
#include <fmt/core.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <span>
#include <vector>

#include "dist/durable_file.h"
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

/// What the UNet is told of the prompt, for one row or, with guidance, two: the negative prompt's first.
struct PromptEmbeds {
  at::Tensor hidden_states;  // [rows, L, cross_attention_dim]
  AddedConditions added;     // SDXL's
};

/// Of one text, rows = 1, without time_ids. One text a call, as in training: kernels choose by the batch's shape.
PromptEmbeds encode_text(const StableDiffusion& base, const std::string& text, int64_t clip_skip) {
  const at::Device device = device_of(base);
  const CLIPTextOutput first = base.text_encoder->forward((*base.tokenizer)({text}).to(device), clip_skip);
  if (!base.is_sdxl()) return {first.last_hidden_state.to(base.dtype), {}};
  const CLIPTextOutput second = base.text_encoder_2->forward((*base.tokenizer_2)({text}).to(device), clip_skip);
  return {at::cat({first.penultimate_hidden_state, second.penultimate_hidden_state}, -1).to(base.dtype),
          {.text_embeds = second.pooled.to(base.dtype), .time_ids = {}}};
}

/// force_zeros_for_empty_prompt of SDXL's model_index.json: without a negative prompt its embeddings are zeros.
bool forces_zeros(const StableDiffusion& base) {
  const auto file = base.folder / "model_index.json";
  if (!base.is_sdxl() || !std::filesystem::is_regular_file(file)) return base.is_sdxl();
  const auto json = nlohmann::json::parse(read_file(file, 1 << 20), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return true;
  const auto setting = json.find("force_zeros_for_empty_prompt");
  return setting == json.end() || !setting->is_boolean() || setting->get<bool>();
}

PromptEmbeds encode_prompt(const StableDiffusion& base, const TextToImageOptions& options, bool with_guidance) {
  PromptEmbeds embeds = encode_text(base, options.prompt, options.clip_skip);
  if (with_guidance) {
    PromptEmbeds negative;
    if (options.negative_prompt.empty() && forces_zeros(base)) {
      negative = {at::zeros_like(embeds.hidden_states),
                  {.text_embeds = at::zeros_like(embeds.added.text_embeds), .time_ids = {}}};
    } else {
      negative = encode_text(base, options.negative_prompt, /*clip_skip=*/0);
    }
    embeds.hidden_states = at::cat({negative.hidden_states, embeds.hidden_states});
    if (base.is_sdxl()) embeds.added.text_embeds = at::cat({negative.added.text_embeds, embeds.added.text_embeds});
  }
  if (base.is_sdxl()) {
    // A picture that was never cropped or scaled, for both rows.
    const auto height = static_cast<float>(options.height), width = static_cast<float>(options.width);
    embeds.added.time_ids = at::tensor(std::vector<float>{height, width, 0, 0, height, width})
                                .repeat({embeds.hidden_states.size(0), 1})
                                .to(device_of(base));
  }
  return embeds;
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
    if (config.steps_offset && !base.is_sdxl()) config.steps_offset = 1;
    if (config.clip_sample && !base.is_sdxl()) config.clip_sample = false;
  } else {
    // A base in one file: what the scheduler folders of SD 1.5, SD 2.1 and SDXL's base agree on.
    if (base.is_sdxl()) config.timestep_spacing = "leading";
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
  require_clip_skip(base, options.clip_skip);
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
  const PromptEmbeds prompt = encode_prompt(base, options, with_guidance);
  const auto calls = static_cast<int64_t>(scheduler->timesteps().size());

  at::Tensor latents = noise.to(device) * scheduler->init_noise_sigma();
  for (const float timestep : scheduler->timesteps()) {
    if (progress && !progress(static_cast<int64_t>(scheduler->step()), calls))
      throw Error(ErrorKind::stopped, "making a picture: stopped on request");
    // 1. One batch of two with guidance: without the prompt, and with it.
    const at::Tensor shown = with_guidance ? at::cat({latents, latents}) : latents;
    const at::Tensor input = scheduler->scale_model_input(shown).to(base.dtype);
    const at::Tensor timesteps = at::full({input.size(0)}, timestep, at::dtype(at::kFloat).device(device));
    at::Tensor prediction = base.unet->forward(input, timesteps, prompt.hidden_states, prompt.added).to(at::kFloat);

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
  const at::Tensor scaled = unscale_latents(base.vae->config(), latents);
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
