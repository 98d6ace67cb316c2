#include "models/lora_state_dict.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr size_t kMaxListed = 8;

bool is_text_encoder(const LoraModule& module) { return module.component.starts_with("text_encoder"); }

bool is_attention_projection(const LoraModule& module) {
  constexpr std::array<std::string_view, 4> kProjections = {".to_q", ".to_k", ".to_v", ".to_out.0"};
  return std::ranges::any_of(kProjections, [&](std::string_view end) { return module.path.ends_with(end); });
}

double scale_of(const LoraModule& module) { return module.alpha / static_cast<double>(module.rank); }

/// "a, b, ... and 3 more"
std::string list(const std::vector<std::string>& keys) {
  const size_t shown = std::min(keys.size(), kMaxListed);
  const std::string text =
      fmt::format("{}", fmt::join(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(shown), ", "));
  return shown == keys.size() ? text : fmt::format("{} and {} more", text, keys.size() - shown);
}

std::string shape(at::IntArrayRef sizes) { return fmt::format("[{}]", fmt::join(sizes, ", ")); }

}  // namespace

std::vector<LoraKeys> diffusers_keys(const std::vector<LoraModule>& modules) {
  // diffusers itself would mix "lora.down" and "lora_A" in one UNet; its loader looks at the first key only and then
  // misreads the others. Text encoders are the other way round: its loader wants "lora_linear_layer" throughout.
  const bool peft_names = std::ranges::any_of(
      modules, [](const LoraModule& module) { return !is_text_encoder(module) && !is_attention_projection(module); });
  std::vector<LoraKeys> result;
  result.reserve(modules.size());
  for (const LoraModule& module : modules) {
    const std::string path = module.component + "." + module.path;
    if (is_text_encoder(module))
      result.push_back({path + ".lora_linear_layer.down.weight", path + ".lora_linear_layer.up.weight"});
    else if (peft_names)
      result.push_back({path + ".lora_A.weight", path + ".lora_B.weight"});
    else
      result.push_back({path + ".lora.down.weight", path + ".lora.up.weight"});
  }
  return result;
}

StateDict to_diffusers(const LoraAdapter& adapter) { return to_diffusers(adapter, adapter.flat_parameters()); }

StateDict to_diffusers(const LoraAdapter& adapter, const at::Tensor& flat_parameters) {
  const auto& modules = adapter.modules();
  const std::vector<LoraKeys> keys = diffusers_keys(modules);
  StateDict state;
  for (size_t i = 0; i < modules.size(); ++i) {
    const int64_t rank = modules[i].rank, in = modules[i].layer->in_features(), out = modules[i].layer->out_features();
    const at::Tensor down = flat_parameters.narrow(0, modules[i].offset, rank * in).view({rank, in});
    const at::Tensor up = flat_parameters.narrow(0, modules[i].offset + rank * in, out * rank).view({out, rank});
    const double scale = scale_of(modules[i]);
    state[keys[i].down] = down.clone();
    state[keys[i].up] = scale == 1 ? up.clone() : up * scale;
  }
  return state;
}

void load_diffusers(LoraAdapter& adapter, const StateDict& state, const std::string& what) {
  const auto& modules = adapter.modules();
  const std::vector<LoraKeys> keys = diffusers_keys(modules);
  std::vector<std::string> missing, unexpected, misshapen;
  std::set<std::string> expected;
  const auto check = [&](const std::string& key, const at::Tensor& parameter) {
    expected.insert(key);
    const auto found = state.find(key);
    if (found == state.end())
      missing.push_back(key);
    else if (found->second.sizes() != parameter.sizes())
      misshapen.push_back(
          fmt::format("{}: expected {}, found {}", key, shape(parameter.sizes()), shape(found->second.sizes())));
    else if (!at::isFloatingType(found->second.scalar_type()))
      misshapen.push_back(
          fmt::format("{}: expected a float type, found {}", key, toString(found->second.scalar_type())));
  };
  for (size_t i = 0; i < modules.size(); ++i) {
    check(keys[i].down, modules[i].layer->lora->down);
    check(keys[i].up, modules[i].layer->lora->up);
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
    const double scale = scale_of(modules[i]);
    pair.down.copy_(state.at(keys[i].down));
    pair.up.copy_(state.at(keys[i].up));
    if (scale != 1) pair.up.div_(scale);
  }
}

}  // namespace lorashard
