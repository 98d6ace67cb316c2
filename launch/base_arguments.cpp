#include "launch/base_arguments.h"

namespace lorashard {

void add_base_arguments(CLI::App& command, BaseArguments& arguments) {
  command.add_option("--base", arguments.folder, "base model: a folder in diffusers layout")->required();
  command.add_option("--variant", arguments.variant, "variant of its weight files, such as fp16");
  command.add_option("--vae", arguments.vae_folder, "another VAE: its folder, or the pipeline that has it");
  command.add_option("--mixed-precision", arguments.mixed_precision, "no (fp32) or bf16 [no]")
      ->check(CLI::IsMember({"no", "bf16"}));
}

StableDiffusion load_base(const BaseArguments& arguments) {
  return load_stable_diffusion(arguments.folder,
                               {.variant = arguments.variant,
                                .vae_folder = arguments.vae_folder,
                                .dtype = arguments.mixed_precision == "bf16" ? at::kBFloat16 : at::kFloat});
}

}  // namespace lorashard
