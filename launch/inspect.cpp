// lorashard inspect: what a file or folder is and holds, checked as far as asked.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "data/bucket_sampler.h"
#include "data/pack.h"
#include "dist/error.h"
#include "dist/sha256.h"
#include "launch/commands.h"
#include "models/adapter_file.h"
#include "models/adapter_keys.h"
#include "models/safetensors.h"
#include "models/single_file.h"
#include "models/stable_diffusion.h"
#include "trainer/checkpoint.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;

std::string shape_text(const at::Tensor& tensor) {
  std::string text;
  for (const int64_t size : tensor.sizes()) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text;
}

/// An adapter of any layout: what it is and, with `all`, every layer of it.
Json inspect_adapter(const std::filesystem::path& path, bool all) {
  const Adapter adapter = read_adapter(path);
  std::map<std::string, int64_t> components, kinds, ranks;
  std::map<std::string, int64_t> alphas;
  Json layers = Json::object();
  int64_t shown = 0;
  for (const AdapterModule& module : adapter.modules) {
    const std::string kind = (module.has("dora_scale") ? "dora " : "") + to_string(module.kind);
    const std::string alpha = module.alpha ? fmt::format("{:g}", *module.alpha) : "none";
    ++components[module.component], ++kinds[kind], ++ranks[std::to_string(module.rank())], ++alphas[alpha];
    if (!all && shown++ >= 8) continue;
    double squares = 0;
    for (const auto& [name, tensor] : module.tensors) squares += std::pow(tensor.to(at::kDouble).norm().item<double>(), 2);
    layers[module.component + "." + module.path] =
        fmt::format("{} rank {} alpha {} norm {:.4g}", kind, module.rank(), alpha, std::sqrt(squares));
  }
  return {{"kind", "adapter"},
          {"path", path.string()},
          {"format", adapter.format},
          {"base", adapter.is_sdxl() ? "SDXL" : "SD 1.x or 2.x"},
          {"num_layers", adapter.modules.size()},
          {"components", components},
          {"kinds", kinds},
          {"ranks", ranks},
          {"alphas", alphas},
          {"skipped", adapter.skipped},
          {"metadata", adapter.metadata},
          {"layers", std::move(layers)}};
}

/// Whether any key is one of an adapter: such a file is read strictly, any other is listed as it is.
bool looks_like_adapter(const std::filesystem::path& path) {
  if (path.extension() != ".safetensors") return true;
  const std::vector<std::string> keys = SafetensorsFile(path).keys();
  return std::ranges::any_of(keys, [](const std::string& key) { return split_adapter_key(key) && key.find('/') == key.npos; });
}

Json inspect_safetensors(const std::filesystem::path& path, bool all) {
  const SafetensorsFile file(path);
  const auto family = single_file_family(file);
  Json tensors = Json::object();
  int64_t parameters = 0, shown = 0;
  for (const std::string& key : file.keys()) {
    const at::Tensor tensor = file.tensor(key);
    parameters += tensor.numel();
    if (all || shown++ < 8) tensors[key] = fmt::format("{} {}", tensor.dtype().name(), shape_text(tensor));
  }
  Json out = {{"kind", "safetensors"}, {"path", path.string()}, {"num_tensors", file.keys().size()}, {"num_parameters", parameters}};
  if (family) {
    out["kind"] = "base model";
    out["layout"] = "one file in the original layout";
    out["family"] = to_string(*family);
    out["sha256"] = sha256_file(path);
  }
  out["metadata"] = file.metadata();
  out["tensors"] = std::move(tensors);
  return out;
}

/// `resolution`: what the buckets are shown for, with a recipe's defaults beside it.
Json inspect_pack(const std::filesystem::path& path, bool verify, int64_t resolution) {
  const Pack pack(path);
  if (verify) pack.verify();
  Json out = {{"kind", "pack"}, {"path", path.string()}, {"num_samples", pack.num_samples()}, {"hash", pack.hash()}};
  out["every_byte_verified"] = verify;
  BucketOptions buckets{.resolution = resolution};
  const int64_t step = buckets.bucket_reso_steps;
  buckets.min_bucket_reso = std::min(buckets.min_bucket_reso, resolution / step * step);
  buckets.max_bucket_reso = std::max(buckets.max_bucket_reso, (resolution + step - 1) / step * step);
  out["num_images_in_epoch"] = pack.num_images_in_epoch();
  out["resolution"] = resolution;
  out["buckets"] = describe(make_buckets(pack, BucketManager(buckets), pack.num_images_in_epoch()));
  Json first = Json::array();
  for (int64_t row = 0; row < std::min<int64_t>(5, pack.num_samples()); ++row) {
    const ImageSize size = pack.size(row);
    first.push_back({{"row", row}, {"file_name", pack.file_name(row)}, {"size", fmt::format("{}x{}", size.width, size.height)},
                     {"caption", pack.caption(row)}});
  }
  out["first_samples"] = std::move(first);
  return out;
}

Json inspect_checkpoint(const std::filesystem::path& path) {
  const TrainingState state = read_checkpoint(path);
  return {{"kind", "checkpoint"},       {"path", path.string()},           {"whole", true},
          {"global_step", state.global_step}, {"updates", state.updates}, {"num_parameters", state.parameters.numel()},
          {"pack_hash", state.pack_hash}, {"base_hash", state.base_hash}};
}

Json inspect_run(const std::filesystem::path& path) {
  Json out = {{"kind", "run"}, {"path", path.string()}};
  const auto newest = newest_checkpoint(path);
  out["newest_checkpoint"] = newest ? inspect_checkpoint(*newest) : Json();
  const auto adapter = path / "pytorch_lora_weights.safetensors";
  out["adapter"] = std::filesystem::exists(adapter) ? inspect_adapter(adapter, false) : Json();
  return out;
}

Json inspect_base(const std::filesystem::path& path) {
  const StableDiffusion base = load_stable_diffusion(path);
  int64_t unet = 0;
  for (const auto& parameter : base.unet->parameters()) unet += parameter.numel();
  return {{"kind", "base model"},
          {"path", path.string()},
          {"family", base.is_sdxl() ? "SDXL" : "SD 1.x or 2.x"},
          {"unet_parameters", unet},
          {"cross_attention_dim", base.unet->config().cross_attention_dim},
          {"prediction_type", base.noise_scheduler->config().prediction_type},
          {"formulation", base.edm_schedule ? "EDM" : "DDPM"},
          {"hash", base_model_hash(path)}};
}

Json inspect(const std::filesystem::path& path, bool verify, bool all, int64_t resolution) {
  if (!std::filesystem::exists(path)) {
    throw Error(ErrorKind::usage, fmt::format("inspecting '{}': there is no such file or folder", path.string()));
  }
  if (std::filesystem::is_regular_file(path))
    return looks_like_adapter(path) ? inspect_adapter(path, all) : inspect_safetensors(path, all);
  if (is_pack(path)) return inspect_pack(path, verify, resolution);
  if (std::filesystem::exists(path / "manifest.json")) return inspect_checkpoint(path);
  if (std::filesystem::exists(path / "recipe.toml")) return inspect_run(path);
  if (std::filesystem::exists(path / "unet" / "config.json")) return inspect_base(path);
  if (is_adapter_folder(path)) return inspect_adapter(path, all);
  throw Error(ErrorKind::usage,
              fmt::format("inspecting '{}': neither an adapter or safetensors file nor a pack, checkpoint, run, adapter or base model folder", path.string()),
              "a folder of pictures becomes a pack with: lorashard pack SOURCE --out DIR");
}

void print_indented(const Json& value, const std::string& indent) {
  for (const auto& [key, item] : value.items()) {
    const std::string label = value.is_array() ? "-" : key + ":";
    if (item.is_structured() && !item.empty()) {
      std::cerr << indent << label << '\n';
      print_indented(item, indent + "  ");
    } else {
      std::cerr << indent << label << ' ' << (item.is_string() ? item.get<std::string>() : item.dump()) << '\n';
    }
  }
}

}  // namespace

void add_inspect_command(CLI::App& app) {
  struct Options {
    std::string path;
    bool json = false, verify = false, all = false;
    int64_t resolution = 512;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("inspect", "say what a file or folder is and holds");
  command->add_option("path", options->path, "adapter, safetensors file, pack, checkpoint, run directory or base model")->required();
  command->add_flag("--verify", options->verify, "read every byte of a pack and compare every hash (checkpoints always are)");
  command->add_flag("--all", options->all, "every layer or tensor of a file, not the first 8");
  command
      ->add_option("--resolution", options->resolution,
                   "the data.resolution that a pack's buckets are shown for; the other keys as a "
                   "recipe has them by default")
      ->check(CLI::Range(64, 16384))
      ->capture_default_str();
  command->add_flag("--json", options->json, "JSON on stdout instead of text on stderr");
  command->callback([options] {
    const Json found = inspect(options->path, options->verify, options->all, options->resolution);
    if (options->json) {
      std::cout << found.dump(2) << '\n';
    } else {
      print_indented(found, "");
    }
  });
}

}  // namespace lorashard
