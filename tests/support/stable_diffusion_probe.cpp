// Oracle's probe of models/stable_diffusion: loads the base FOLDER [VARIANT] and runs each part on IN (pixel_values,
// sample, timesteps, for SDXL time_ids) and PROMPT: stable_diffusion_probe FOLDER VARIANT PROMPT IN OUT. Prints the base's hash.
#include <ATen/ATen.h>

#include <iostream>
#include <string>

#include "dist/error.h"
#include "models/safetensors.h"
#include "models/stable_diffusion.h"

namespace lorashard {
namespace {

void run(const std::string& folder, const std::string& variant, const std::string& prompt, const std::string& in,
         const std::string& out) {
  const at::NoGradGuard no_grad;
  const StableDiffusionOptions options = {.variant = variant};
  const StableDiffusion base = load_stable_diffusion(folder, options);
  const SafetensorsFile inputs(in);
  StateDict results;
  const at::Tensor input_ids = (*base.tokenizer)({prompt});
  const CLIPTextOutput text = base.text_encoder->forward(input_ids);
  at::Tensor hidden = text.last_hidden_state;
  AddedConditions added;
  if (base.is_sdxl()) {
    results["input_ids_2"] = (*base.tokenizer_2)({prompt});
    const CLIPTextOutput text_2 = base.text_encoder_2->forward(results["input_ids_2"]);
    hidden = at::cat({text.penultimate_hidden_state, text_2.penultimate_hidden_state}, -1);
    added = {.text_embeds = text_2.pooled, .time_ids = inputs.tensor("time_ids")};
    results["pooled_prompt_embeds"] = text_2.pooled;
  }
  results["input_ids"] = input_ids;
  results["encoder_hidden_states"] = hidden;
  results["moments"] = base.vae->encode_moments(inputs.tensor("pixel_values"));
  results["model_pred"] = base.unet->forward(inputs.tensor("sample"), inputs.tensor("timesteps"), hidden, added);
  results["alphas_cumprod"] = base.noise_scheduler->alphas_cumprod();
  write_safetensors(out, results);
  std::cout << base_model_hash(folder, options) << '\n';
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: stable_diffusion_probe FOLDER VARIANT PROMPT IN OUT\n";
    return 2;
  }
  try {
    lorashard::run(argv[1], argv[2], argv[3], argv[4], argv[5]);
  } catch (const lorashard::Error& error) {
    std::cerr << error.what() << '\n';
    return lorashard::exit_code(error.kind());
  }
}
