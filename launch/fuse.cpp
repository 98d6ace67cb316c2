// lorashard fuse: a base with adapters merged into it, as a folder or a file of its own.
#include <fmt/ranges.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "dist/error.h"
#include "dist/log.h"
#include "launch/base_arguments.h"
#include "launch/commands.h"
#include "models/adapter_apply.h"
#include "models/adapter_file.h"
#include "models/fuse_base.h"

namespace lorashard {
namespace {

struct Options {
  BaseArguments base;
  std::vector<std::string> loras;
  std::string out;
  bool json = false;
};

void fuse(const Options& options) {
  const std::vector<LoraArgument> loras = parse_lora_arguments(options.loras);
  require_place_for_fused(options.base.path, options.out);
  StableDiffusion base = load_base(options.base);
  ChangedLayers changed;
  for (const LoraArgument& lora : loras) {
    const Adapter adapter = read_adapter(lora.file, module_names(base));
    apply_adapter(base, adapter, lora.scale);
    if (lora.scale == 0) continue;
    for (const AdapterModule& module : adapter.modules) changed[module.component].insert(module.path);
  }
  const std::string note = fmt::format("{}", fmt::join(in_words(loras), ", "));
  const FusedFiles written = write_fused_base(base, changed, options.out, note);
  for (const std::string& file : written.skipped)
    log::info("left out '{}': it holds the base's weights without the adapters", file);
  log::info("'{}': {} of {} in {} layers", options.out, note, options.base.path, written.num_layers);
  if (!options.json) return;
  nlohmann::ordered_json adapters = nlohmann::ordered_json::array();
  for (const LoraArgument& lora : loras) adapters.push_back({{"file", lora.file.string()}, {"scale", lora.scale}});
  const nlohmann::ordered_json out = {{"out", options.out},
                                      {"base", options.base.path},
                                      {"loras", adapters},
                                      {"layers", written.num_layers},
                                      {"weight_files", written.num_weight_files},
                                      {"left_out", written.skipped}};
  std::cout << out.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
}

}  // namespace

void add_fuse_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("fuse", "merge adapters into a base model: a base of its own");
  command->add_option("--base", options->base.path, "base model: a folder in diffusers layout, or one .safetensors file")->required();
  command->add_option("--variant", options->base.variant, "variant of its weight files to merge from, such as fp16");
  add_single_file_arguments(*command, options->base);
  add_lora_argument(*command, options->loras)->required();
  command->add_option("--out", options->out, "the folder to make, or the file where the base is one")->required();
  command->add_flag("--json", options->json, "what was made, as JSON on stdout");
  command->footer(
      "Everything of the base is copied; the layers the adapters change are merged in fp32 and rounded once to the type\n"
      "their file has, in every variant. diffusers' from_pretrained loads the folder like the base, and so does lorashard.\n"
      "A base in one file becomes one file of the same layout, for from_single_file and for web UIs.\n"
      "  lorashard fuse --base BASE --lora runs/pokemon:0.8 --out pokemon-base\n"
      "  lorashard fuse --base sd.safetensors --tokenizer bpe_simple_vocab_16e6.txt.gz --lora runs/pokemon --out pokemon-sd.safetensors");
  command->callback([options] { fuse(*options); });
}

}  // namespace lorashard
