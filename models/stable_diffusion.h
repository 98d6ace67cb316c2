// A base model: the components of a diffusers folder, or of one .safetensors file in the original (LDM, SGM) layout, that
// training needs, loaded and frozen.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <filesystem>
#include <memory>
#include <string>

#include "models/autoencoder_kl.h"
#include "models/clip_text_model.h"
#include "models/clip_tokenizer.h"
#include "models/ddpm_scheduler.h"
#include "models/edm_schedule.h"
#include "models/unet_2d_condition.h"

namespace lorashard {

struct StableDiffusion {
  std::filesystem::path folder;  ///< or the single file
  std::shared_ptr<CLIPTokenizer> tokenizer;
  std::shared_ptr<CLIPTextModel> text_encoder;
  std::shared_ptr<AutoencoderKL> vae;
  std::shared_ptr<CLIPTokenizer> tokenizer_2;     ///< SDXL alone
  std::shared_ptr<CLIPTextModel> text_encoder_2;  ///< SDXL alone: with projection
  std::shared_ptr<UNet2DConditionModel> unet;
  std::shared_ptr<DDPMScheduler> noise_scheduler;
  std::shared_ptr<EDMSchedule> edm_schedule;  ///< of a base of EDM's formulation (Playground v2.5) alone, in place of the noise above
  at::ScalarType dtype = at::kFloat;      ///< of the frozen weights of UNet and text encoders
  /// Of the VAE's: fp32 where its config says force_upcast and the base is SDXL's or fp16, else `dtype`.
  at::ScalarType vae_dtype = at::kFloat;
  at::Device device = at::kCPU;           ///< of all weights
  int64_t clip_skip = 0;                  ///< of the captions in training: this many last layers of the text encoders aren't used

  bool is_sdxl() const { return text_encoder_2 != nullptr; }

  /// Pixels a latent: 8 for four VAE blocks.
  int64_t vae_scale_factor() const { return int64_t{1} << (vae->config().block_out_channels.size() - 1); }
};

struct StableDiffusionOptions {
  std::string variant = {};                    ///< "fp16": *.fp16.safetensors
  std::filesystem::path vae_folder = {};       ///< another VAE: its folder, the pipeline folder that holds vae/, or one file; empty: the base's own
  std::filesystem::path config_folder = {};    ///< single file: configs in diffusers layout instead of SD 1.5's, 2.1's or SDXL's own
  std::filesystem::path tokenizer = {};        ///< folder of a tokenizer or of a pipeline, or CLIP's vocabulary file; empty: the base's own
  std::string prediction_type = {};            ///< overrides the scheduler's; empty: the base's own
  at::ScalarType dtype = at::kFloat;      ///< of the frozen weights
  at::Device device = at::kCPU;           ///< to load them to
  int64_t clip_skip = 0;                  ///< as in StableDiffusion; less than the text encoders have layers
  bool rescale_betas_zero_snr = false;    ///< the noise schedule ends in pure noise, whatever the base's scheduler says
};

/// Throws Error(usage) unless each text encoder has more than `clip_skip` layers.
void require_clip_skip(const StableDiffusion& base, int64_t clip_skip);

/// `path`: a folder or a single file. Throws Error(usage) naming a folder or file that isn't there, Error(bad_data) for one that is wrong.
StableDiffusion load_stable_diffusion(const std::filesystem::path& path, const StableDiffusionOptions& options = {});

/// The identity of a base: SHA-256 over the names and SHA-256 of its config, tokenizer and weight files, as `path` and `options` name them.
std::string base_model_hash(const std::filesystem::path& path, const StableDiffusionOptions& options = {});

/// Writes a small base with random weights in diffusers layout, the same bytes every time: "tiny-sd15", "tiny-sd21" or "tiny-sdxl", or the
/// full-size "sd15", "sd21" and "sdxl" (random weights of the real shapes, for benchmarks). `vocabulary` is bpe_simple_vocab_16e6.txt.gz
/// (PyPI's open_clip_torch has it); empty: a vocabulary of single bytes. Throws Error(usage) for an unknown preset.
void init_base(const std::string& preset, const std::filesystem::path& out, uint64_t seed, const std::filesystem::path& vocabulary);

}  // namespace lorashard
