#include "models/lora.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <set>
#include <span>

#include "dist/error.h"
#include "dist/philox.h"
#include "models/lora_state_dict.h"

namespace lorashard {
namespace {

bool is_target(const std::string& path, const std::string& target) {
  return path == target || path.ends_with("." + target);
}

/// The end of `path` that serves as a target: its last word, with the one before where the last is a number
/// ("to_out.0").
std::string target_of(const std::string& path) {
  size_t dot = path.rfind('.');
  if (dot != std::string::npos && dot > 0 && path.find_first_not_of("0123456789", dot + 1) == std::string::npos)
    dot = path.rfind('.', dot - 1);
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

[[noreturn]] void no_layer_has(const std::string& component, torch::nn::Module& model, const std::string& target) {
  std::set<std::string> targets;
  bool is_convolution = false;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    if (dynamic_cast<const Linear*>(item.value().get())) targets.insert(target_of(item.key()));
    if (dynamic_cast<const Conv2d*>(item.value().get())) is_convolution |= is_target(item.key(), target);
  }
  const std::string hint = fmt::format("linear layers there are: {}", fmt::join(targets, ", "));
  if (is_convolution)
    throw Error(
        ErrorKind::usage,
        fmt::format("adding LoRA to '{}': expected linear layers for target module '{}', found only convolutions",
                    component, target),
        hint);
  throw Error(ErrorKind::usage,
              fmt::format("adding LoRA to '{}': no layer's path ends with target module '{}'", component, target),
              hint);
}

}  // namespace

void LoraAdapter::add(const std::string& component, torch::nn::Module& model, const LoraOptions& options) {
  LORASHARD_CHECK(!flat_parameters_.defined(), "LoraAdapter::add('{}') after allocate()", component);
  if (options.rank < 1)
    throw Error(ErrorKind::usage,
                fmt::format("adding LoRA to '{}': expected rank >= 1, found {}", component, options.rank));
  if (options.target_modules.empty())
    throw Error(ErrorKind::usage, fmt::format("adding LoRA to '{}': target_modules is empty", component));
  int64_t offset = 0;
  if (!modules_.empty()) {
    const LoraModule& last = modules_.back();
    offset = last.offset + last.rank * (last.layer->in_features() + last.layer->out_features());
  }
  std::set<std::string> found;
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    auto* layer = dynamic_cast<Linear*>(item.value().get());
    if (!layer) continue;
    bool matches = false;
    for (const std::string& target : options.target_modules)
      if (is_target(item.key(), target)) {
        found.insert(target);
        matches = true;
      }
    if (!matches) continue;
    modules_.push_back({component, item.key(), options.rank, options.alpha, offset, layer});
    offset += options.rank * (layer->in_features() + layer->out_features());
  }
  for (const std::string& target : options.target_modules)
    if (!found.contains(target)) no_layer_has(component, model, target);
}

void LoraAdapter::allocate(uint64_t seed) {
  LORASHARD_CHECK(!modules_.empty() && !flat_parameters_.defined(),
                  "LoraAdapter::allocate() needs one add() before, once");
  const LoraModule& last = modules_.back();
  const int64_t total = last.offset + last.rank * (last.layer->in_features() + last.layer->out_features());
  flat_parameters_ = at::zeros({total}, at::kFloat);
  flat_gradients_ = at::zeros({total}, at::kFloat);
  for (size_t position = 0; position < modules_.size(); ++position) {
    const LoraModule& module = modules_[position];
    const int64_t rank = module.rank, in = module.layer->in_features(), out = module.layer->out_features();
    const auto parameter = [&](int64_t offset, int64_t rows, int64_t columns) {
      // Detached, so that it is a leaf of its own whose flat tensor the optimizer may change in place.
      at::Tensor value = flat_parameters_.narrow(0, offset, rows * columns).view({rows, columns}).detach();
      value.set_requires_grad(true);
      value.mutable_grad() = flat_gradients_.narrow(0, offset, rows * columns).view({rows, columns});
      return value;
    };
    LoraPair pair{.down = parameter(module.offset, rank, in),
                  .up = parameter(module.offset + rank * in, out, rank),
                  .scale = module.alpha / static_cast<double>(rank)};
    const std::span<float> down(flat_parameters_.data_ptr<float>() + module.offset, static_cast<size_t>(rank * in));
    fill_normal(down, seed, position, Purpose::lora_init);
    for (float& value : down) value /= static_cast<float>(rank);
    module.layer->lora = std::move(pair);
  }
}

void LoraAdapter::to(at::Device device) {
  if (device == flat_parameters_.device()) return;
  const at::NoGradGuard no_grad;
  flat_parameters_ = flat_parameters_.to(device);
  flat_gradients_ = flat_gradients_.to(device);
  for (LoraParameter& parameter : parameters()) {
    const auto view_of = [&](const at::Tensor& flat, const at::Tensor& place) {
      return flat.narrow(0, place.storage_offset(), place.numel()).view(place.sizes());
    };
    const at::Tensor gradient = view_of(flat_gradients_, parameter.gradient);
    parameter.value.set_data(view_of(flat_parameters_, parameter.value));
    parameter.value.mutable_grad() = gradient;
  }
}

std::vector<LoraParameter> LoraAdapter::parameters() const {
  const std::vector<LoraKeys> keys = diffusers_keys(modules_);
  std::vector<LoraParameter> result;
  for (size_t i = 0; i < modules_.size(); ++i) {
    const LoraPair& pair = *modules_[i].layer->lora;
    result.push_back({keys[i].down, pair.down, pair.down.grad(), LoraPart::down, i});
    result.push_back({keys[i].up, pair.up, pair.up.grad(), LoraPart::up, i});
  }
  return result;
}

}  // namespace lorashard
