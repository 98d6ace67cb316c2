// The options with which `lorashard generate`, `fuse` and `convert` are told of a base model and of adapters.
#pragma once
#include <CLI/CLI.hpp>
#include <filesystem>
#include <string>
#include <vector>

#include "models/stable_diffusion.h"

namespace lorashard {

struct BaseArguments {
  std::string path, variant, vae_folder, config, tokenizer, mixed_precision = "no";
};

/// --base, --variant, --vae, --config, --tokenizer, --mixed-precision.
void add_base_arguments(CLI::App& command, BaseArguments& arguments);
/// --config and --tokenizer alone.
void add_single_file_arguments(CLI::App& command, BaseArguments& arguments);
/// Throws as load_stable_diffusion().
StableDiffusion load_base(const BaseArguments& arguments, at::Device device = at::kCPU);

struct LoraArgument {
  std::filesystem::path file;
  double scale = 1;
};

/// --lora FILE[:scale], any number of times.
CLI::Option* add_lora_argument(CLI::App& command, std::vector<std::string>& arguments);
/// "a.safetensors:0.7": what follows the last colon is the scale where it is a number and the whole isn't a file's
/// name. A folder means its pytorch_lora_weights.safetensors. Throws Error(usage) where there is no such file.
std::vector<LoraArgument> parse_lora_arguments(const std::vector<std::string>& arguments);

/// "pokemon:0.7" for each, for people: the file's name, or its folder's where all are named alike.
std::vector<std::string> in_words(const std::vector<LoraArgument>& loras);

}  // namespace lorashard
