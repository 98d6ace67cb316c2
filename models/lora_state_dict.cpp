#include "models/lora_state_dict.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "dist/error.h"
#include "models/lora_variants.h"

namespace lorashard {
namespace {

constexpr size_t kMaxListed = 8;

bool is_text_encoder(const LayerName& module) { return module.component.starts_with("text_encoder"); }

bool is_attention_projection(const LayerName& module) {
  constexpr std::array<std::string_view, 4> kProjections = {".to_q", ".to_k", ".to_v", ".to_out.0"};
  return std::ranges::any_of(kProjections, [&](std::string_view end) { return module.path.ends_with(end); });
}

/// "a, b, ... and 3 more"
std::string list(const std::vector<std::string>& keys) {
  const size_t shown = std::min(keys.size(), kMaxListed);
  const std::string text =
      fmt::format("{}", fmt::join(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(shown), ", "));
  return shown == keys.size() ? text : fmt::format("{} and {} more", text, keys.size() - shown);
}

/// peft keeps the magnitudes of a convolution as [1, out, 1, 1].
std::vector<int64_t> magnitude_sizes(const LoraModule& module) {
  const int64_t out = module.layer->weight.size(0);
  return module.layer->weight.dim() == 4 ? std::vector<int64_t>{1, out, 1, 1} : std::vector<int64_t>{out};
}

std::string shape(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

}  // namespace

std::vector<LoraKeys> diffusers_keys(const std::vector<LoraModule>& modules) {
  std::vector<LayerName> layers;
  for (const LoraModule& module : modules) layers.push_back({module.component, module.path});
  return diffusers_keys(layers);
}

std::vector<LoraKeys> diffusers_keys(const std::vector<LayerName>& modules) {
  // diffusers itself would mix "lora.down" and "lora_A" in one UNet; its loader looks at the first key only and then
  // misreads the others. Text encoders are the other way round: its loader wants "lora_linear_layer" throughout.
  const bool peft_names = std::ranges::any_of(
      modules, [](const LayerName& module) { return !is_text_encoder(module) && !is_attention_projection(module); });
  std::vector<LoraKeys> result;
  result.reserve(modules.size());
  for (const LayerName& module : modules) {
    const std::string path = module.component + "." + module.path;
    std::string down = ".lora.down.weight", up = ".lora.up.weight";
    if (is_text_encoder(module)) {
      down = ".lora_linear_layer.down.weight", up = ".lora_linear_layer.up.weight";
    } else if (peft_names) {
      down = ".lora_A.weight", up = ".lora_B.weight";
    }
    result.push_back({path + down, path + up, path + ".lora_magnitude_vector"});
  }
  return result;
}

StateDict to_diffusers(const LoraAdapter& adapter) { return to_diffusers(adapter, adapter.flat_parameters()); }

StateDict to_diffusers(const LoraAdapter& adapter, const at::Tensor& flat_parameters) {
  const auto& modules = adapter.modules();
  const std::vector<LoraKeys> keys = diffusers_keys(modules);
  StateDict state;
  for (size_t i = 0; i < modules.size(); ++i) {
    const LoraModule& module = modules[i];
    const auto part = [&](int64_t offset, at::IntArrayRef sizes) {
      return flat_parameters.narrow(0, module.offset + offset, c10::multiply_integers(sizes)).view(sizes).clone();
    };
    state[keys[i].down] = part(0, module.down_sizes());
    const at::Tensor up = part(module.down_numel(), module.up_sizes());
    state[keys[i].up] = module.scale == 1 ? up : up * module.scale;
    if (module.use_dora)
      state[keys[i].magnitude] = part(module.down_numel() + module.up_numel(), magnitude_sizes(module));
  }
  return state;
}

void load_diffusers(LoraAdapter& adapter, const StateDict& state, const std::string& what) {
  const auto& modules = adapter.modules();
  const std::vector<LoraKeys> keys = diffusers_keys(modules);
  std::vector<std::string> missing, unexpected, misshapen;
  std::set<std::string> expected;
  const auto check = [&](const std::string& key, at::IntArrayRef sizes) {
    expected.insert(key);
    const auto found = state.find(key);
    if (found == state.end())
      missing.push_back(key);
    else if (found->second.sizes() != sizes)
      misshapen.push_back(
          fmt::format("{}: expected {}, found {}", key, shape(sizes), shape(found->second.sizes())));
    else if (!at::isFloatingType(found->second.scalar_type()))
      misshapen.push_back(
          fmt::format("{}: expected a float type, found {}", key, toString(found->second.scalar_type())));
  };
  for (size_t i = 0; i < modules.size(); ++i) {
    check(keys[i].down, modules[i].down_sizes());
    check(keys[i].up, modules[i].up_sizes());
    if (modules[i].use_dora) check(keys[i].magnitude, magnitude_sizes(modules[i]));
  }
  for (const auto& [key, value] : state)
    if (!expected.contains(key)) unexpected.push_back(key);

  std::vector<std::string> faults;
  if (!missing.empty()) faults.push_back(fmt::format("missing keys ({}): {}", missing.size(), list(missing)));
  if (!unexpected.empty())
    faults.push_back(fmt::format("unexpected keys ({}): {}", unexpected.size(), list(unexpected)));
  if (!misshapen.empty())
    faults.push_back(fmt::format("tensors that don't fit ({}): {}", misshapen.size(), list(misshapen)));
  if (!faults.empty())
    throw Error(ErrorKind::bad_data, fmt::format("loading LoRA weights from '{}': {}", what, fmt::join(faults, "; ")),
                "rank and target_modules must be those the file was written with");

  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < modules.size(); ++i) {
    const LoraPair& pair = *modules[i].layer->lora;
    pair.down.copy_(state.at(keys[i].down));
    pair.up.copy_(state.at(keys[i].up));
    if (modules[i].scale != 1) pair.up.div_(modules[i].scale);
    if (modules[i].use_dora) pair.magnitude.copy_(state.at(keys[i].magnitude).flatten());
  }
}

Adapter to_adapter(const LoraAdapter& adapter, const at::Tensor& flat_parameters) {
  Adapter result;
  const at::Tensor flat = flat_parameters.cpu();
  for (const LoraModule& module : adapter.modules()) {
    const auto part = [&](int64_t offset, at::IntArrayRef sizes) {
      return flat.narrow(0, module.offset + offset, c10::multiply_integers(sizes)).view(sizes).clone();
    };
    AdapterModule copy{.component = module.component, .path = module.path};
    copy.tensors["down"] = part(0, module.down_sizes());
    copy.tensors["up"] = part(module.down_numel(), module.up_sizes());
    copy.alpha = module.scale * static_cast<double>(module.rank);
    if (module.use_dora) {
      std::vector<int64_t> sizes(static_cast<size_t>(module.layer->weight.dim()), 1);
      sizes[0] = module.layer->weight.size(0);
      copy.tensors["dora_scale"] = part(module.down_numel() + module.up_numel(), sizes);
    }
    result.modules.push_back(std::move(copy));
  }
  return result;
}

void load_adapter(LoraAdapter& adapter, const Adapter& from, const std::string& what) {
  const auto refuse = [&](const std::string& fault, const std::string& hint) {
    throw Error(ErrorKind::usage, fmt::format("starting from adapter '{}': {}", what, fault), hint);
  };
  constexpr const char* kSameLayers = "target_modules and the text encoders trained must be those of the file; `lorashard inspect` shows them";
  const auto& modules = adapter.modules();
  if (from.modules.size() != modules.size())
    refuse(fmt::format("it has {} layers, the recipe {}", from.modules.size(), modules.size()), kSameLayers);
  const at::NoGradGuard no_grad;
  for (const LoraModule& module : modules) {
    const auto found = std::ranges::find_if(from.modules, [&](const AdapterModule& other) {
      return other.component == module.component && other.path == module.path;
    });
    const std::string name = module.component + "." + module.path;
    if (found == from.modules.end()) refuse(fmt::format("it has no layer '{}'", name), kSameLayers);
    if (found->kind != AdapterKind::lora || found->has("mid") || found->has("diff_b"))
      refuse(fmt::format("'{}' is no plain LoRA pair", name), "`lorashard convert` makes LoRA pairs of LoHa, LoKr and Tucker forms");
    if (found->rank() != module.rank)
      refuse(fmt::format("'{}' has rank {}, the recipe {}", name, found->rank(), module.rank),
             fmt::format("set lora.rank = {} (or lora.rank_pattern)", found->rank()));
    if (found->has("dora_scale") && !module.use_dora)
      refuse(fmt::format("'{}' is a DoRA", name), "set lora.use_dora = true");
    const LoraPair& pair = *module.layer->lora;
    const at::Tensor &down = found->tensors.at("down"), &up = found->tensors.at("up");
    if (down.sizes() != pair.down.sizes() || up.sizes() != pair.up.sizes())
      refuse(fmt::format("'{}' has down {} and up {}, the layer needs {} and {}", name, shape(down.sizes()), shape(up.sizes()),
                         shape(pair.down.sizes()), shape(pair.up.sizes())), "it was made for another base model");
    pair.down.copy_(down);
    pair.up.copy_(up);
    if (const double factor = found->scale() / module.scale; factor != 1) pair.up.mul_(factor);
    if (module.use_dora)
      pair.magnitude.copy_(found->has("dora_scale") ? found->tensors.at("dora_scale").flatten()
                                                    : dora_norm(module.layer->weight, pair));
  }
}

}  // namespace lorashard
