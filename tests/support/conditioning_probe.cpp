// conditioning_probe vae|clip|ddpm CONFIG.json WEIGHTS.safetensors IN.safetensors OUT.safetensors
// Runs one of the frozen parts of training on the tensors of IN, for the oracles (ddpm ignores WEIGHTS).
#include <ATen/ATen.h>
#include <fmt/core.h>

#include <cstdio>
#include <exception>
#include <string>

#include "models/autoencoder_kl.h"
#include "models/clip_text_model.h"
#include "models/ddpm_scheduler.h"
#include "models/model_config.h"
#include "models/safetensors.h"
#include "models/state_dict.h"

namespace lorashard {
namespace {

/// in: pixel_values, vae_noise, latents. out: moments, sampled, decoded.
StateDict run_vae(const std::string& config, const std::string& weights, const SafetensorsFile& in) {
  AutoencoderKL vae(read_vae_config(config));
  load_state_dict(vae, normalise_vae_keys(SafetensorsFile(weights).tensors()), weights);
  const at::Tensor moments = vae.encode_moments(in.tensor("pixel_values"));
  return {{"moments", moments},
          {"sampled", sample_latents(moments, in.tensor("vae_noise"))},
          {"decoded", vae.decode(in.tensor("latents"))}};
}

/// in: input_ids; metadata clip_skip. out: the fields of CLIPTextOutput.
StateDict run_clip(const std::string& config, const std::string& weights, const SafetensorsFile& in) {
  CLIPTextModel text_encoder(read_text_encoder_config(config));
  load_state_dict(text_encoder, normalise_text_encoder_keys(SafetensorsFile(weights).tensors()), weights);
  const CLIPTextOutput out = text_encoder.forward(in.tensor("input_ids"), std::stoll(in.metadata().at("clip_skip")));
  return {{"last_hidden_state", out.last_hidden_state},
          {"penultimate_hidden_state", out.penultimate_hidden_state},
          {"pooled", out.pooled}};
}

/// in: latents, noise, timesteps. out: alphas_cumprod, noisy_latents, velocity, target, snr.
StateDict run_ddpm(const std::string& config, const SafetensorsFile& in) {
  const DDPMScheduler scheduler(read_scheduler_config(config));
  const at::Tensor latents = in.tensor("latents"), noise = in.tensor("noise"), timesteps = in.tensor("timesteps");
  return {{"alphas_cumprod", scheduler.alphas_cumprod()},
          {"noisy_latents", scheduler.add_noise(latents, noise, timesteps)},
          {"velocity", scheduler.get_velocity(latents, noise, timesteps)},
          {"target", scheduler.target(latents, noise, timesteps)},
          {"snr", scheduler.compute_snr(timesteps)}};
}

int run(int argc, char** argv) {
  if (argc != 6) {
    fmt::print(stderr, "usage: {} vae|clip|ddpm CONFIG WEIGHTS IN OUT\n", argv[0]);
    return 2;
  }
  const std::string part = argv[1], config = argv[2], weights = argv[3];
  const SafetensorsFile in(argv[4]);
  write_safetensors(argv[5], part == "vae"    ? run_vae(config, weights, in)
                             : part == "clip" ? run_clip(config, weights, in)
                                              : run_ddpm(config, in));
  return 0;
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  try {
    return lorashard::run(argc, argv);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 70;
  }
}
