// sampling_probe scheduler CONFIG.json INPUTS OUT: steps a sampler over given model outputs.
// sampling_probe picture BASE INPUTS OUT: makes a picture from given noise.
// INPUTS and OUT are safetensors files; the metadata of INPUTS holds the options (see the two functions).
#include <ATen/TensorOperators.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include "dist/error.h"
#include "models/safetensors.h"
#include "models/sampling_scheduler.h"
#include "models/stable_diffusion.h"
#include "models/text_to_image.h"

using namespace lorashard;

namespace {

/// Metadata: scheduler, steps, karras ("0" or "1"). Tensors: noise, model_output/0, model_output/1, ...; each output
/// has `follow` of the current sample added, so that errors of one step reach the next. Out: timesteps, input/i,
/// sample/i.
void run_scheduler(const std::string& config, const SafetensorsFile& inputs, const std::string& out) {
  const Metadata& options = inputs.metadata();
  const auto scheduler = make_sampling_scheduler(options.at("scheduler"), read_sampling_config(config),
                                                 std::stoll(options.at("steps")), options.at("karras") == "1");
  const double follow = std::stod(options.at("follow"));
  StateDict results;
  results["timesteps"] = at::tensor(scheduler->timesteps());
  at::Tensor sample = inputs.tensor("noise") * scheduler->init_noise_sigma();
  for (size_t i = 0; i < scheduler->timesteps().size(); ++i) {
    const at::Tensor input = scheduler->scale_model_input(sample);
    sample = scheduler->step(inputs.tensor(fmt::format("model_output/{}", i)) + follow * input, sample);
    results[fmt::format("input/{}", i)] = input;
    results[fmt::format("sample/{}", i)] = sample;
  }
  write_safetensors(out, results);
}

/// Metadata: prompt, negative_prompt, scheduler, steps, karras, guidance_scale, height, width, clip_skip. Tensors: noise.
/// Out: latents, image.
void run_picture(const std::string& folder, const SafetensorsFile& inputs, const std::string& out) {
  const Metadata& metadata = inputs.metadata();
  const StableDiffusion base = load_stable_diffusion(folder);
  const TextToImageOptions options = checked_options(base, {.prompt = metadata.at("prompt"),
                                                            .negative_prompt = metadata.at("negative_prompt"),
                                                            .height = std::stoll(metadata.at("height")),
                                                            .width = std::stoll(metadata.at("width")),
                                                            .num_inference_steps = std::stoll(metadata.at("steps")),
                                                            .guidance_scale = std::stod(metadata.at("guidance_scale")),
                                                            .scheduler = metadata.at("scheduler"),
                                                            .use_karras_sigmas = metadata.at("karras") == "1",
                                                            .clip_skip = std::stoll(metadata.at("clip_skip"))});
  const at::Tensor latents = denoise(base, options, inputs.tensor("noise"));
  write_safetensors(out, {{"latents", latents}, {"image", decode_latents(base, latents)}});
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    fmt::print(stderr, "usage: sampling_probe scheduler|picture CONFIG|BASE INPUTS OUT\n");
    return 2;
  }
  try {
    const SafetensorsFile inputs(argv[3]);
    if (std::string(argv[1]) == "scheduler")
      run_scheduler(argv[2], inputs, argv[4]);
    else
      run_picture(argv[2], inputs, argv[4]);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return exit_code(error.kind());
  }
  return 0;
}
