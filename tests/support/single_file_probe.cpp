// single_file_probe BASE CONFIG_FOLDER TOKENIZER VAE TEXT OUT.safetensors: a base (one file or a folder) as lorashard loads it.
// OUT receives every parameter as <component>.<name>, input_ids and input_ids_2 of TEXT, prediction_type as an empty tensor's name.
// Prints the names of parameters that don't lie on a mapped file, then the base's hash.
#include <ATen/ATen.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "dist/error.h"
#include "models/safetensors.h"
#include "models/stable_diffusion.h"

namespace lorashard {
namespace {

/// The address ranges of this process that are mapped .safetensors files.
std::vector<std::pair<uintptr_t, uintptr_t>> mapped_files() {
  std::vector<std::pair<uintptr_t, uintptr_t>> ranges;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (!line.ends_with(".safetensors")) continue;
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream(line) >> std::hex >> begin >> dash >> end;
    ranges.emplace_back(begin, end);
  }
  return ranges;
}

void run(const std::string& path, const StableDiffusionOptions& options, const std::string& text, const std::string& out) {
  const StableDiffusion base = load_stable_diffusion(path, options);
  const auto ranges = mapped_files();
  StateDict results;
  const auto add = [&](const std::string& component, const torch::nn::Module& module) {
    for (const auto& item : module.named_parameters()) {
      const std::string name = component + "." + item.key();
      results[name] = item.value().detach();
      const auto address = reinterpret_cast<uintptr_t>(item.value().const_data_ptr());
      const bool is_mapped = std::any_of(ranges.begin(), ranges.end(),
                                         [&](const auto& range) { return address >= range.first && address < range.second; });
      if (!is_mapped) std::cout << name << '\n';
    }
  };
  add("unet", *base.unet);
  add("vae", *base.vae);
  add("text_encoder", *base.text_encoder);
  results["input_ids"] = (*base.tokenizer)({text});
  if (base.is_sdxl()) {
    add("text_encoder_2", *base.text_encoder_2);
    results["input_ids_2"] = (*base.tokenizer_2)({text});
  }
  results["prediction_type." + base.noise_scheduler->config().prediction_type] = at::zeros({1});
  write_safetensors(out, results);
  std::cout << base_model_hash(path, options) << '\n';
}

}  // namespace
}  // namespace lorashard

int main(int argc, char** argv) {
  if (argc != 7) {
    std::cerr << "usage: single_file_probe BASE CONFIG_FOLDER TOKENIZER VAE TEXT OUT\n";
    return 2;
  }
  try {
    lorashard::run(argv[1], {.vae_folder = argv[4], .config_folder = argv[2], .tokenizer = argv[3]}, argv[5], argv[6]);
  } catch (const lorashard::Error& error) {
    std::cerr << error.what() << '\n';
    return lorashard::exit_code(error.kind());
  }
}
