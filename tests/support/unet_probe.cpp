// unet_probe MODEL_DIR INPUTS.safetensors OUT_DIR: the oracle's view of the UNet and its LoRA adapter.
// INPUTS holds sample, timesteps, encoder_hidden_states, for SDXL text_embeds and time_ids, and, for a gradient, target;
// its metadata holds dtype and, for an adapter, targets (comma between), rank, alpha, dora, rslora, init, dropout (of
// images 0, 1, ... with seed 1), rank_pattern ("name=rank", comma between) and lora (a file in diffusers' keys). OUT_DIR receives
// out.safetensors, parameters.txt (names in order), lora_modules.txt and pytorch_lora_weights.safetensors.
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "dist/error.h"
#include "models/lora.h"
#include "models/lora_dropout.h"
#include "models/lora_state_dict.h"
#include "models/model_config.h"
#include "models/safetensors.h"
#include "models/state_dict.h"
#include "models/unet_2d_condition.h"

using namespace lorashard;
namespace fs = std::filesystem;

namespace {

std::string option(const Metadata& metadata, const std::string& key, const std::string& fallback) {
  const auto found = metadata.find(key);
  return found == metadata.end() ? fallback : found->second;
}

LoraOptions lora_options(const Metadata& metadata) {
  LoraOptions options;
  options.rank = std::stoll(option(metadata, "rank", "4"));
  options.alpha = std::stod(option(metadata, "alpha", "4"));
  options.target_modules.clear();
  options.dropout = std::stod(option(metadata, "dropout", "0"));
  options.rank_dropout = std::stod(option(metadata, "rank_dropout", "0"));
  options.module_dropout = std::stod(option(metadata, "module_dropout", "0"));
  options.use_dora = option(metadata, "dora", "") == "1";
  options.use_rslora = option(metadata, "rslora", "") == "1";
  options.init = option(metadata, "init", "gaussian");
  std::stringstream targets(metadata.at("targets")), patterns(option(metadata, "rank_pattern", ""));
  for (std::string target; std::getline(targets, target, ',');) options.target_modules.push_back(target);
  for (std::string pattern; std::getline(patterns, pattern, ',');)
    options.rank_pattern[pattern.substr(0, pattern.find('='))] = std::stoll(pattern.substr(pattern.find('=') + 1));
  return options;
}

void run(const fs::path& model_dir, const fs::path& inputs, const fs::path& out_dir) {
  const SafetensorsFile file(inputs);
  const at::ScalarType dtype = option(file.metadata(), "dtype", "float32") == "bfloat16" ? at::kBFloat16 : at::kFloat;

  UNet2DConditionModel unet(read_unet_config(model_dir / "unet" / "config.json"));
  load_state_dict(unet, read_component_weights(model_dir / "unet", "diffusion_pytorch_model"), "unet", dtype);
  std::ofstream names(out_dir / "parameters.txt");
  for (const auto& item : unet.named_parameters()) names << item.key() << '\n';

  LoraAdapter adapter;
  if (file.metadata().contains("targets")) {
    adapter.add("unet", unet, lora_options(file.metadata()));
    adapter.allocate(1);
    if (file.metadata().contains("lora")) {
      const std::string path = file.metadata().at("lora");
      load_diffusers(adapter, SafetensorsFile(path).tensors(), path);
    }
    write_safetensors(out_dir / "pytorch_lora_weights.safetensors", to_diffusers(adapter), {{"format", "pt"}});
    std::ofstream paths(out_dir / "lora_modules.txt");
    for (const LoraModule& module : adapter.modules()) paths << module.path << '\n';
  }

  StateDict results;
  AddedConditions added;
  if (file.contains("text_embeds"))
    added = {.text_embeds = file.tensor("text_embeds").to(dtype), .time_ids = file.tensor("time_ids")};
  for (const LoraParameter& parameter : adapter.parameters())
    results["init/" + parameter.key] = parameter.value.detach().clone();
  std::vector<DropoutRow> rows;
  for (int64_t i = 0; i < file.tensor("sample").size(0); ++i) rows.push_back({.slot = static_cast<uint64_t>(i)});
  const LoraDropoutRows dropout_rows(rows);
  const at::Tensor output = unet.forward(file.tensor("sample").to(dtype), file.tensor("timesteps"),
                                         file.tensor("encoder_hidden_states").to(dtype), added);
  results["output"] = output.detach().to(at::kFloat).contiguous();
  if (file.contains("target")) {
    at::mse_loss(output.to(at::kFloat), file.tensor("target")).backward();
    for (const LoraParameter& parameter : adapter.parameters()) results["grad/" + parameter.key] = parameter.gradient;
  }
  write_safetensors(out_dir / "out.safetensors", results);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) {
    fmt::print(stderr, "usage: unet_probe MODEL_DIR INPUTS.safetensors OUT_DIR\n");
    return 2;
  }
  try {
    run(argv[1], argv[2], argv[3]);
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return exit_code(error.kind());
  }
  return 0;
}
