// lorashard convert: an adapter file of any layout as one of the three that other programs load.
#include <memory>
#include <string>

#include "dist/error.h"
#include "dist/log.h"
#include "launch/base_arguments.h"
#include "launch/commands.h"
#include "models/adapter_apply.h"
#include "models/adapter_convert.h"
#include "models/adapter_write.h"

namespace lorashard {
namespace {

struct Options {
  std::string in, out, to;
  BaseArguments base;
  int64_t rank = 0;
  bool resolve_dora = false;
};

/// diffusers looks for one file name in a folder, so a folder gets that.
std::filesystem::path file_for(const std::string& out, AdapterFormat format) {
  const std::filesystem::path path = out;
  if (format == AdapterFormat::peft || path.extension() == ".safetensors") return path;
  if (format == AdapterFormat::diffusers) return path / "pytorch_lora_weights.safetensors";
  throw Error(ErrorKind::usage, fmt::format("converting to '{}': expected the name of a .safetensors file", out),
              "for example kohya_lora.safetensors");
}

void convert(const Options& options) {
  const AdapterFormat format = parse_adapter_format(options.to);
  const std::filesystem::path path = file_for(options.out, format);
  StableDiffusion base;
  ModuleNames names = ModuleNames::standard();
  ConvertOptions how{.rank = options.rank, .resolve_dora = options.resolve_dora};
  AdaptableLayers layers;
  if (!options.base.path.empty()) {
    base = load_base(options.base);
    names = module_names(base);
    layers = adaptable_layers(base);
    how.weight_of = [&](const std::string& component, const std::string& layer) { return layers[component][layer]->weight; };
  }
  const Adapter adapter = read_adapter(options.in, names);
  const ConvertResult result = as_lora(adapter, how);
  WriteOptions write{.names = names, .base_model_name = options.base.path};
  write.is_sdxl = options.base.path.empty() ? adapter.is_sdxl() : base.is_sdxl();
  std::error_code fails_below;
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path(), fails_below);
  write_adapter(path, result.adapter, format, write);
  if (result.num_approximated > 0)
    log::info(
        "{} of {} layers were cut to rank {} by singular values: relative error {:.2e} over all of them, {:.2e} of the worst ('{}')",
        result.num_approximated, result.adapter.modules.size(), options.rank, result.error, result.worst_error,
        result.worst_layer);
  log::info("wrote '{}': {} layers, {} ({}), read again and compared", path.string(), result.adapter.modules.size(),
            options.to, write.is_sdxl ? "SDXL" : "SD 1.x or 2.x");
}

}  // namespace

void add_convert_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("convert", "write an adapter in another layout");
  command->add_option("in", options->in, "adapter: .safetensors, .bin, or a folder (diffusers, PEFT)")->required();
  command->add_option("out", options->out, "file to write; for peft a folder")->required();
  command->add_option("--to", options->to, "diffusers, kohya or peft")->required();
  command->add_option("--rank", options->rank, "of what only singular values make a LoRA pair: LoHa, LoKr, full differences");
  CLI::Option* base =
      command->add_option("--base", options->base.path, "base model: for layers of unusual names, and for --resolve-dora");
  add_single_file_arguments(*command, options->base);
  for (const char* name : {"--config", "--tokenizer"}) command->get_option(name)->needs(base);
  command->add_flag("--resolve-dora", options->resolve_dora, "make plain LoRA pairs of DoRA (needs --base and --rank)");
  command->footer("docs/lora_formats.md says what each layout holds and who loads it.");
  command->callback([options] { convert(*options); });
}

}  // namespace lorashard
