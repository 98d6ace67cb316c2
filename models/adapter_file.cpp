#include "models/adapter_file.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"
#include "models/adapter_alpha.h"
#include "models/adapter_keys.h"
#include "models/torch_pickle.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kMostListed = 8;
constexpr const char* kDiffusersFile = "pytorch_lora_weights";
constexpr const char* kPeftFile = "adapter_model";
constexpr const char* kPeftConfig = "adapter_config.json";
constexpr const char* kComponents[] = {"unet", "text_encoder", "text_encoder_2"};

std::string list(const std::vector<std::string>& items) {
  const size_t shown = std::min(items.size(), kMostListed);
  const std::string text =
      fmt::format("{}", fmt::join(items.begin(), items.begin() + static_cast<ptrdiff_t>(shown), ", "));
  return shown == items.size() ? text : fmt::format("{} and {} more", text, items.size() - shown);
}

/// The component and path of a key's layer; without a component in the key, the first that has such a layer.
bool resolve(const AdapterKey& key, const ModuleNames& names, std::string& component, std::string& path) {
  for (const char* candidate : kComponents) {
    if (!key.component.empty() && key.component != candidate) continue;
    if (const auto found = names.find(candidate, key.module)) {
      component = candidate;
      path = *found;
      return true;
    }
  }
  return false;
}

AdapterKind kind_of(const AdapterModule& module) {
  const auto any = [&](std::string_view prefix) {
    return std::ranges::any_of(module.tensors, [&](const auto& entry) { return entry.first.starts_with(prefix); });
  };
  if (any("hada_")) return AdapterKind::loha;
  if (any("lokr_")) return AdapterKind::lokr;
  if (any("down") || any("up") || any("mid")) return AdapterKind::lora;
  return AdapterKind::full;
}

/// What `module` lacks or has wrongly; "" when it is whole.
std::string fault_of(const AdapterModule& module) {
  const auto lacks = [&](std::initializer_list<const char*> tensors) -> std::string {
    for (const char* tensor : tensors)
      if (!module.has(tensor)) return fmt::format("has no {}", tensor);
    return "";
  };
  for (const auto& [name, value] : module.tensors)
    if (!at::isFloatingType(value.scalar_type())) return fmt::format("{} is {}", name, toString(value.scalar_type()));
  switch (module.kind) {
    case AdapterKind::lora: {
      if (std::string fault = lacks({"down", "up"}); !fault.empty()) return fault;
      const at::Tensor &down = module.tensors.at("down"), &up = module.tensors.at("up");
      if (down.dim() < 2 || up.dim() != down.dim() || up.size(1) != (module.has("mid") ? up.size(1) : down.size(0)))
        return fmt::format("down [{}] and up [{}] don't fit", fmt::join(down.sizes(), ", "),
                           fmt::join(up.sizes(), ", "));
      return "";
    }
    case AdapterKind::loha:
      return lacks({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"});
    case AdapterKind::lokr: {
      std::string fault = module.has("lokr_w1") ? "" : lacks({"lokr_w1_a", "lokr_w1_b"});
      if (fault.empty() && !module.has("lokr_w2")) fault = lacks({"lokr_w2_a", "lokr_w2_b"});
      return fault;
    }
    case AdapterKind::full:
      break;
  }
  return module.has("diff") || module.has("diff_b") ? "" : "has nothing that changes its weight";
}

/// peft's magnitudes [out] or [1, out, 1, 1] as LyCORIS has them: [out, 1(, 1, 1)].
at::Tensor as_dora_scale(const at::Tensor& magnitude, const AdapterModule& module) {
  const int64_t dimensions = module.has("down") ? module.tensors.at("down").dim() : 2;
  std::vector<int64_t> sizes(static_cast<size_t>(dimensions), 1);
  sizes[0] = magnitude.numel();
  return magnitude.reshape(sizes);
}

void finish(AdapterModule& module) {
  if (const auto magnitude = module.tensors.find("magnitude"); magnitude != module.tensors.end()) {
    module.tensors["dora_scale"] = as_dora_scale(magnitude->second, module);
    module.tensors.erase("magnitude");
  }
  if (const auto alpha = module.tensors.find("alpha"); alpha != module.tensors.end()) {
    if (alpha->second.numel() == 1) module.alpha = alpha->second.to(at::kDouble).item<double>();
    module.tensors.erase("alpha");
  }
  module.kind = kind_of(module);
}

std::string hint_for(const std::vector<std::string>& unknown) {
  const bool other_model = std::ranges::any_of(unknown, [](const std::string& key) {
    return key.find("double_blocks") != key.npos || key.find("joint_") != key.npos ||
           key.starts_with("transformer.") || key.find("single_blocks") != key.npos;
  });
  return other_model ? "these are layers of another kind of model than Stable Diffusion 1.x, 2.x or XL"
                     : "docs/lora_formats.md lists what is read; for a base of unusual shape give --base DIR";
}

fs::path weights_in(const fs::path& folder, const char* stem) {
  for (const char* end : {".safetensors", ".bin"})
    if (fs::is_regular_file(folder / (std::string(stem) + end))) return folder / (std::string(stem) + end);
  return {};
}

/// One file, with PEFT's config where it has one.
Adapter read_weights(const fs::path& path, const ModuleNames& names, const std::string& config_json) {
  if (path.extension() == ".safetensors") {
    const SafetensorsFile file(path);
    return parse_adapter(file.tensors(), file.metadata(), path.string(), names, config_json);
  }
  return parse_adapter(read_torch_pickle(path), {}, path.string(), names, config_json);
}

Adapter read_peft_folder(const fs::path& folder, const ModuleNames& names) {
  const fs::path weights = weights_in(folder, kPeftFile);
  if (weights.empty())
    throw Error(ErrorKind::usage, fmt::format("reading adapter '{}': there is {}, but no {}.safetensors",
                                              folder.string(), kPeftConfig, kPeftFile));
  Adapter adapter = read_weights(weights, names, read_file(folder / kPeftConfig));
  adapter.format = "peft";
  // PEFT's keys don't name the model; where the folder does, it is right.
  if (folder.filename() == "text_encoder_2")
    for (AdapterModule& module : adapter.modules) module.component = "text_encoder_2";
  return adapter;
}

Adapter read_folder(const fs::path& folder, const ModuleNames& names) {
  if (fs::exists(folder / kPeftConfig)) return read_peft_folder(folder, names);
  if (const fs::path file = weights_in(folder, kDiffusersFile); !file.empty()) return read_weights(file, names, "");
  Adapter whole;
  for (const char* component : kComponents)
    if (fs::exists(folder / component / kPeftConfig)) {
      Adapter part = read_peft_folder(folder / component, names);
      whole.format = part.format;
      std::ranges::move(part.modules, std::back_inserter(whole.modules));
    }
  if (!whole.modules.empty()) return whole;
  throw Error(ErrorKind::usage,
              fmt::format("reading adapter '{}': the folder holds no {}.safetensors, no {} and no unet/{}",
                          folder.string(), kDiffusersFile, kPeftConfig, kPeftConfig));
}

}  // namespace

std::string to_string(AdapterKind kind) {
  switch (kind) {
    case AdapterKind::lora: return "lora";
    case AdapterKind::loha: return "loha";
    case AdapterKind::lokr: return "lokr";
    case AdapterKind::full: break;
  }
  return "full";
}

int64_t AdapterModule::rank() const {
  if (kind == AdapterKind::lora) return tensors.at("down").size(0);
  if (kind == AdapterKind::loha) return tensors.at("hada_w1_b").size(0);
  if (has("lokr_w2_b")) return tensors.at("lokr_w2_b").size(0);
  return has("lokr_w1_b") ? tensors.at("lokr_w1_b").size(0) : 0;
}

double AdapterModule::scale() const {
  const int64_t divisor = rank();
  return alpha && divisor > 0 ? *alpha / static_cast<double>(divisor) : 1.0;
}

bool Adapter::is_sdxl() const {
  constexpr int64_t kTextWidth = 2048;
  return std::ranges::any_of(modules, [](const AdapterModule& module) {
    if (module.component != "unet") return module.component == "text_encoder_2";
    if (in_sdxl_unet(module.path) && !in_sd_unet(module.path)) return true;
    const bool reads_text = module.path.ends_with("attn2.to_k") || module.path.ends_with("attn2.to_v");
    return reads_text && module.has("down") && module.tensors.at("down").size(1) == kTextWidth;
  });
}

Adapter parse_adapter(const StateDict& tensors, const Metadata& metadata, const std::string& what,
                      const ModuleNames& names, const std::string& config_json) {
  Adapter adapter;
  adapter.metadata = metadata;
  std::map<std::pair<std::string, std::string>, AdapterModule> modules;
  std::vector<std::string> unknown, faults;
  for (const auto& [key, value] : tensors) {
    if (is_bundled_embedding(key)) {
      adapter.skipped.push_back(key);
      continue;
    }
    const auto parts = split_adapter_key(key);
    std::string component, path;
    if (!parts || !resolve(*parts, names, component, path)) {
      unknown.push_back("'" + key + "'");
      continue;
    }
    AdapterModule& module = modules[{component, path}];
    module.component = component;
    module.path = path;
    if (!module.tensors.emplace(parts->tensor, value).second)
      faults.push_back(fmt::format("'{}' has two tensors {}", path, parts->tensor));
    const bool named_by_component = parts->format == "peft" && !parts->component.empty();
    if (adapter.format != "lycoris" && parts->tensor != "alpha")
      adapter.format = named_by_component ? "diffusers" : parts->format;
  }
  for (auto& [name, module] : modules) {
    finish(module);
    if (const std::string fault = fault_of(module); !fault.empty())
      faults.push_back(fmt::format("'{}' of {} {}", module.path, module.component, fault));
    adapter.modules.push_back(std::move(module));
  }
  if (!unknown.empty())
    faults.insert(faults.begin(), fmt::format("unknown keys ({}): {}", unknown.size(), list(unknown)));
  if (adapter.modules.empty() && faults.empty()) faults.push_back("it holds no adapter");
  if (!faults.empty())
    throw Error(ErrorKind::bad_data, fmt::format("reading adapter '{}': {}", what, list(faults)), hint_for(unknown));
  set_alphas(adapter, config_json, what);
  if (!adapter.skipped.empty())
    log::info("adapter '{}': skipped {} embeddings bundled with it (bundle_emb.*)", what, adapter.skipped.size());
  return adapter;
}

Adapter read_adapter(const fs::path& path, const ModuleNames& names) {
  if (!fs::exists(path))
    throw Error(ErrorKind::usage, fmt::format("reading adapter '{}': there is no such file or folder", path.string()));
  if (fs::is_directory(path)) return read_folder(path, names);
  const fs::path config = path.parent_path() / kPeftConfig;
  if (path.stem() == kPeftFile && fs::exists(config)) return read_weights(path, names, read_file(config));
  return read_weights(path, names, "");
}

bool is_adapter_folder(const fs::path& folder) {
  return fs::exists(folder / kPeftConfig) || !weights_in(folder, kDiffusersFile).empty() ||
         std::ranges::any_of(kComponents, [&](const char* part) { return fs::exists(folder / part / kPeftConfig); });
}

std::string adapter_hash(const fs::path& path) {
  if (!fs::exists(path))
    throw Error(ErrorKind::usage, fmt::format("reading adapter '{}': there is no such file or folder", path.string()));
  if (!fs::is_directory(path)) return sha256_file(path);
  std::string all;
  for (const char* part : {".", "unet", "text_encoder", "text_encoder_2"})
    for (const char* stem : {kPeftConfig, kPeftFile, kDiffusersFile})
      for (const char* end : {"", ".safetensors", ".bin"})
        if (const fs::path file = path / part / (std::string(stem) + end); fs::is_regular_file(file))
          all += fmt::format("{}/{}{} {}\n", part, stem, end, sha256_file(file));
  return sha256(all);
}

}  // namespace lorashard
