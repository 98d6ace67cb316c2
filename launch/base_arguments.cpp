#include "launch/base_arguments.h"

#include <fmt/core.h>

#include <charconv>
#include <cmath>
#include <optional>

#include "dist/error.h"
#include "trainer/preflight.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kAdapterName = "pytorch_lora_weights.safetensors";

std::optional<double> number(const std::string& text) {
  double value = 0;
  const char* end = text.data() + text.size();
  const auto [stopped, code] = std::from_chars(text.data(), end, value);
  if (text.empty() || code != std::errc() || stopped != end || !std::isfinite(value)) return std::nullopt;
  return value;
}

LoraArgument parse_lora_argument(const std::string& text) {
  LoraArgument lora{.file = text};
  if (const size_t colon = text.rfind(':'); colon != text.npos && !fs::exists(text)) {
    if (const auto scale = number(text.substr(colon + 1))) lora = {text.substr(0, colon), *scale};
  }
  if (!fs::exists(lora.file)) {
    throw Error(ErrorKind::usage, fmt::format("--lora '{}': there is no file '{}'", text, lora.file.string()),
                "give FILE or FILE:SCALE, or the output_dir of a run");
  }
  return lora;
}

}  // namespace

void add_base_arguments(CLI::App& command, BaseArguments& arguments) {
  command.add_option("--base", arguments.path, "base model: a folder in diffusers layout, or one .safetensors file")->required();
  command.add_option("--variant", arguments.variant, "variant of its weight files, such as fp16");
  command.add_option("--vae", arguments.vae_folder, "another VAE: its folder, or the pipeline that has it");
  add_single_file_arguments(command, arguments);
  command.add_option("--mixed-precision", arguments.mixed_precision, "no (fp32), bf16 or fp16 [no]")
      ->check(CLI::IsMember({"no", "bf16", "fp16"}));
}

void add_single_file_arguments(CLI::App& command, BaseArguments& arguments) {
  command.add_option("--tokenizer", arguments.tokenizer,
                     "for a base in one file: CLIP's bpe_simple_vocab_16e6.txt.gz, a tokenizer's folder, or a diffusers folder");
  command.add_option("--config", arguments.config, "for a base in one file: a diffusers folder whose configs and tokenizers go with it");
}

StableDiffusion load_base(const BaseArguments& arguments, at::Device device) {
  return load_stable_diffusion(arguments.path,
                               {.variant = arguments.variant,
                                .vae_folder = arguments.vae_folder,
                                .config_folder = arguments.config,
                                .tokenizer = arguments.tokenizer,
                                .dtype = dtype_of(arguments.mixed_precision),
                                .device = device});
}

CLI::Option* add_lora_argument(CLI::App& command, std::vector<std::string>& arguments) {
  return command
      .add_option("--lora", arguments, "FILE[:SCALE]: an adapter and how much of it [1]; may be given several times")
      ->allow_extra_args(false);
}

std::vector<LoraArgument> parse_lora_arguments(const std::vector<std::string>& arguments) {
  std::vector<LoraArgument> loras;
  for (const std::string& argument : arguments) loras.push_back(parse_lora_argument(argument));
  return loras;
}

std::vector<std::string> in_words(const std::vector<LoraArgument>& loras) {
  std::vector<std::string> words;
  for (const LoraArgument& lora : loras) {
    const fs::path whole = fs::weakly_canonical(lora.file);
    const bool by_folder = whole.filename() == kAdapterName;
    const fs::path named = by_folder ? whole.parent_path() : whole;
    words.push_back(fmt::format("{}:{:g}", fs::is_directory(named) ? named.filename().string() : named.stem().string(),
                                lora.scale));
  }
  return words;
}

}  // namespace lorashard
