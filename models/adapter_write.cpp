#include "models/adapter_write.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "models/lora_state_dict.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;
namespace fs = std::filesystem;

/// The value most modules have; of equally frequent ones the smallest.
template <class T, class Of>
T most_common(const std::vector<const AdapterModule*>& modules, const Of& of) {
  std::map<T, size_t> counts;
  for (const AdapterModule* module : modules) ++counts[of(*module)];
  return std::ranges::max_element(counts, {}, [](const auto& entry) { return entry.second; })->first;
}

double alpha_of(const AdapterModule& module) { return module.scale() * static_cast<double>(module.rank()); }

std::map<std::string, std::vector<const AdapterModule*>> by_component(const Adapter& adapter) {
  std::map<std::string, std::vector<const AdapterModule*>> components;
  for (const AdapterModule& module : adapter.modules) {
    LORASHARD_CHECK(module.kind == AdapterKind::lora && !module.has("mid") && !module.has("diff_b"),
                    "'{}' is no plain pair", module.path);
    components[module.component].push_back(&module);
  }
  return components;
}

at::Tensor scaled(const at::Tensor& up, double factor) {
  return factor == 1 ? up : (up.to(at::kFloat) * factor).to(up.scalar_type());
}

/// dora_scale [out, 1(, 1, 1)] as peft keeps it: [out], of convolutions [1, out, 1, 1].
at::Tensor as_magnitude(const at::Tensor& dora_scale) {
  return dora_scale.dim() == 4 ? dora_scale.reshape({1, -1, 1, 1}) : dora_scale.flatten();
}

std::string kohya_prefix(const std::string& component, bool is_sdxl) {
  if (component == "unet") return "lora_unet_";
  if (component == "text_encoder_2") return "lora_te2_";
  return is_sdxl ? "lora_te1_" : "lora_te_";
}

StateDict to_peft(const std::vector<const AdapterModule*>& modules) {
  StateDict state;
  for (const AdapterModule* module : modules) {
    const std::string path = "base_model.model." + module->path;
    state[path + ".lora_A.weight"] = module->tensors.at("down");
    state[path + ".lora_B.weight"] = module->tensors.at("up");
    if (module->has("dora_scale")) state[path + ".lora_magnitude_vector"] = as_magnitude(module->tensors.at("dora_scale"));
  }
  return state;
}

std::string peft_config(const std::vector<const AdapterModule*>& modules, const WriteOptions& options) {
  const auto rank = most_common<int64_t>(modules, [](const AdapterModule& m) { return m.rank(); });
  const auto alpha = most_common<double>(modules, alpha_of);
  Json targets = Json::array(), ranks = Json::object(), alphas = Json::object();
  for (const AdapterModule* module : modules) {
    targets.push_back(module->path);
    if (module->rank() != rank) ranks[module->path] = module->rank();
    if (alpha_of(*module) != alpha) alphas[module->path] = alpha_of(*module);
  }
  const bool dora = std::ranges::any_of(modules, [](const auto* module) { return module->has("dora_scale"); });
  const Json config = {{"peft_type", "LORA"},
                       {"base_model_name_or_path", options.base_model_name.empty() ? Json() : Json(options.base_model_name)},
                       {"task_type", nullptr},
                       {"inference_mode", true},
                       {"r", rank},
                       {"lora_alpha", alpha},
                       {"lora_dropout", 0.0},
                       {"target_modules", targets},
                       {"rank_pattern", ranks},
                       {"alpha_pattern", alphas},
                       {"use_rslora", false},
                       {"use_dora", dora},
                       {"bias", "none"},
                       {"fan_in_fan_out", false}};
  return config.dump(2) + "\n";
}

[[noreturn]] void reads_back_otherwise(const fs::path& path, const std::string& what) {
  throw Error(ErrorKind::io, fmt::format("writing adapter '{}': read back, {}", path.string(), what),
              "the disk or file system returns other bytes than it was given");
}

/// Every layer is there, down is the same, and scale * up is the same up to rounding of its type.
void require_same_adapter(const fs::path& path, const Adapter& expected, const Adapter& found) {
  if (found.modules.size() != expected.modules.size())
    reads_back_otherwise(path, fmt::format("it has {} layers, not {}", found.modules.size(), expected.modules.size()));
  for (const AdapterModule& module : expected.modules) {
    const auto same = std::ranges::find_if(found.modules, [&](const AdapterModule& other) {
      return other.component == module.component && other.path == module.path;
    });
    if (same == found.modules.end()) reads_back_otherwise(path, fmt::format("'{}' is not there", module.path));
    const auto up = [](const AdapterModule& of) { return of.tensors.at("up").to(at::kDouble) * of.scale(); };
    const double tolerance = module.tensors.at("up").scalar_type() == at::kFloat ? 1e-6 : 1e-2;
    const at::Tensor difference = up(*same) - up(module);
    const bool dora_is_same = module.has("dora_scale") == same->has("dora_scale") &&
                              (!module.has("dora_scale") || at::equal(module.tensors.at("dora_scale").flatten(),
                                                                      same->tensors.at("dora_scale").flatten()));
    if (!at::equal(module.tensors.at("down"), same->tensors.at("down")) || !dora_is_same ||
        difference.norm().item<double>() > tolerance * up(module).norm().item<double>())
      reads_back_otherwise(path, fmt::format("'{}' has other values", module.path));
  }
}

}  // namespace

AdapterFormat parse_adapter_format(const std::string& name) {
  if (name == "diffusers") return AdapterFormat::diffusers;
  if (name == "kohya") return AdapterFormat::kohya;
  if (name == "peft") return AdapterFormat::peft;
  throw Error(ErrorKind::usage, fmt::format("adapter format '{}': expected diffusers, kohya or peft", name));
}

StateDict to_diffusers(const Adapter& adapter) {
  std::vector<LayerName> layers;
  for (const auto& [component, modules] : by_component(adapter))
    for (const AdapterModule* module : modules) layers.push_back({component, module->path});
  const std::vector<LoraKeys> keys = diffusers_keys(layers);
  StateDict state;
  size_t i = 0;
  for (const auto& [component, modules] : by_component(adapter))
    for (const AdapterModule* module : modules) {
      state[keys[i].down] = module->tensors.at("down");
      state[keys[i].up] = scaled(module->tensors.at("up"), module->scale());
      if (module->has("dora_scale")) state[keys[i].magnitude] = as_magnitude(module->tensors.at("dora_scale"));
      ++i;
    }
  return state;
}

StateDict to_kohya(const Adapter& adapter, const WriteOptions& options) {
  StateDict state;
  for (const auto& [component, modules] : by_component(adapter)) {
    // diffusers since 0.32 gives every layer the alpha most have.
    const auto alpha = most_common<double>(modules, alpha_of);
    for (const AdapterModule* module : modules) {
      const bool original = options.is_sdxl && component == "unet";
      const std::string key = kohya_prefix(component, options.is_sdxl) +
                              flattened(original ? options.names.sgm_name(module->path) : module->path);
      const at::Tensor& up = module->tensors.at("up");
      state[key + ".lora_down.weight"] = module->tensors.at("down");
      state[key + ".lora_up.weight"] = scaled(up, alpha_of(*module) / alpha);
      state[key + ".alpha"] = at::scalar_tensor(alpha, at::kFloat);
      if (module->has("dora_scale")) state[key + ".dora_scale"] = module->tensors.at("dora_scale");
    }
  }
  return state;
}

Metadata kohya_metadata(const Adapter& adapter, const WriteOptions& options) {
  Metadata metadata = options.metadata;
  metadata["modelspec.sai_model_spec"] = "1.0.0";
  if (options.is_sdxl) {
    metadata["modelspec.architecture"] = "stable-diffusion-xl-v1-base/lora";
    metadata["ss_base_model_version"] = "sdxl_base_v1-0";
  }
  const auto components = by_component(adapter);
  const auto unet = components.find("unet");
  if (unet == components.end()) return metadata;
  const auto& modules = unet->second;
  const auto all_have = [&](const auto& of) {
    return std::ranges::all_of(modules, [&](const auto* module) { return of(*module) == of(*modules[0]); });
  };
  if (all_have([](const AdapterModule& m) { return m.rank(); }) && all_have(alpha_of)) {
    metadata["ss_network_dim"] = std::to_string(modules[0]->rank());
    metadata["ss_network_alpha"] = fmt::format("{}", alpha_of(*modules[0]));
  }
  metadata["ss_network_module"] = "networks.lora";
  return metadata;
}

void write_adapter(const fs::path& path, const Adapter& adapter, AdapterFormat format, const WriteOptions& options) {
  if (format == AdapterFormat::peft) {
    for (const auto& [component, modules] : by_component(adapter)) {
      const fs::path folder = path / component;
      std::error_code fails_below;
      fs::create_directories(folder, fails_below);
      write_safetensors(folder / "adapter_model.safetensors", to_peft(modules), {{"format", "pt"}});
      write_durably(folder / "adapter_config.json", peft_config(modules, options));
    }
  } else if (format == AdapterFormat::kohya) {
    write_safetensors(path, to_kohya(adapter, options), kohya_metadata(adapter, options));
  } else {
    Metadata metadata = options.metadata;
    metadata["format"] = "pt";
    write_safetensors(path, to_diffusers(adapter), metadata);
  }
  require_same_adapter(path, adapter, read_adapter(path, options.names));
}

}  // namespace lorashard
