#include "models/lora.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <set>
#include <span>
#include <utility>

#include "dist/error.h"
#include "dist/philox.h"
#include "models/lora_init.h"
#include "models/lora_state_dict.h"
#include "models/lora_targets.h"
#include "models/lora_variants.h"

namespace lorashard {
namespace {

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

void check_options(const std::string& component, const LoraOptions& options) {
  const auto refuse = [&](const std::string& what) {
    throw Error(ErrorKind::usage, fmt::format("adding LoRA to '{}': {}", component, what));
  };
  if (options.rank < 1) refuse(fmt::format("expected rank >= 1, found {}", options.rank));
  for (const auto& [pattern, rank] : options.rank_pattern)
    if (rank < 1) refuse(fmt::format("expected rank >= 1 for '{}' of rank_pattern, found {}", pattern, rank));
  for (const auto& [name, p] : {std::pair{"lora_dropout", options.dropout}, std::pair{"rank_dropout", options.rank_dropout},
                                std::pair{"module_dropout", options.module_dropout}})
    if (!(p >= 0 && p < 1)) refuse(fmt::format("expected {} in [0, 1), found {}", name, p));
  if (options.use_dora && (options.rank_dropout > 0 || options.module_dropout > 0))
    refuse("rank_dropout and module_dropout are for plain pairs, and use_dora is set");
  if (options.init != "gaussian" && options.init != "kaiming")
    refuse(fmt::format("expected init gaussian or kaiming, found '{}'", options.init));
  if (options.target_modules.empty()) refuse("target_modules is empty");
}

/// The layer's rank, scale and kind, as the options and their patterns say; patterns used are noted in `used`.
LoraModule make_module(const std::string& component, const std::string& path, AdaptableLayer& layer,
                       const LoraOptions& options, std::map<std::string, bool>& patterns) {
  LoraModule module{.component = component, .path = path, .rank = options.rank};
  double alpha = options.alpha;
  if (const auto* pattern = find_pattern(options.rank_pattern, path, layer)) {
    module.rank = pattern->second;
    patterns[pattern->first] = true;
  }
  if (const auto* pattern = find_pattern(options.alpha_pattern, path, layer)) {
    alpha = pattern->second;
    patterns[pattern->first] = true;
  }
  const auto rank = static_cast<double>(module.rank);
  module.scale = alpha / (options.use_rslora ? std::sqrt(rank) : rank);
  module.use_dora = options.use_dora;
  module.dropout = options.dropout;
  module.rank_dropout = options.rank_dropout;
  module.module_dropout = options.module_dropout;
  module.init = options.init;
  module.layer = &layer;
  return module;
}

}  // namespace

std::vector<int64_t> LoraModule::down_sizes() const {
  std::vector<int64_t> sizes = layer->weight.sizes().vec();
  sizes[0] = rank;
  return sizes;
}

std::vector<int64_t> LoraModule::up_sizes() const {
  std::vector<int64_t> sizes(static_cast<size_t>(layer->weight.dim()), 1);
  sizes[0] = layer->weight.size(0);
  sizes[1] = rank;
  return sizes;
}

int64_t LoraModule::down_numel() const { return product(down_sizes()); }
int64_t LoraModule::up_numel() const { return product(up_sizes()); }
int64_t LoraModule::num_parameters() const {
  return down_numel() + up_numel() + (use_dora ? layer->weight.size(0) : 0);
}

void LoraAdapter::add(const std::string& component, torch::nn::Module& model, const LoraOptions& options) {
  LORASHARD_CHECK(!flat_parameters_.defined(), "LoraAdapter::add('{}') after allocate()", component);
  check_options(component, options);
  int64_t offset = modules_.empty() ? 0 : modules_.back().offset + modules_.back().num_parameters();
  std::set<std::string> found;
  for (const auto& [pattern, rank] : options.rank_pattern) patterns_.emplace(pattern, false);
  for (const auto& [pattern, alpha] : options.alpha_pattern) patterns_.emplace(pattern, false);
  for (const auto& item : model.named_modules("", /*include_self=*/false)) {
    auto* layer = dynamic_cast<AdaptableLayer*>(item.value().get());
    if (!layer) continue;
    bool matches = false;
    for (const std::string& target : options.target_modules)
      if (is_target(item.key(), *layer, target)) {
        found.insert(target);
        matches = true;
      }
    if (!matches) continue;
    modules_.push_back(make_module(component, item.key(), *layer, options, patterns_));
    modules_.back().offset = offset;
    offset += modules_.back().num_parameters();
  }
  for (const std::string& target : options.target_modules)
    if (!found.contains(target)) no_layer_fits(component, model, target);
}

at::Tensor LoraAdapter::make_parameter(int64_t offset, at::IntArrayRef sizes) {
  const int64_t numel = c10::multiply_integers(sizes);
  // Detached, so that it is a leaf of its own whose flat tensor the optimizer may change in place.
  at::Tensor value = flat_parameters_.narrow(0, offset, numel).view(sizes).detach();
  value.set_requires_grad(true);
  value.mutable_grad() = flat_gradients_.narrow(0, offset, numel).view(sizes);
  return value;
}

void LoraAdapter::allocate(uint64_t seed) {
  LORASHARD_CHECK(!modules_.empty() && !flat_parameters_.defined(),
                  "LoraAdapter::allocate() needs one add() before, once");
  for (const auto& [pattern, fits] : patterns_)
    if (!fits)
      throw Error(ErrorKind::usage,
                  fmt::format("adding LoRA: '{}' of rank_pattern or alpha_pattern fits no layer that has an adapter", pattern),
                  "they are the names, patterns and presets that target_modules has; the longest that fits a layer counts");
  const int64_t total = modules_.back().offset + modules_.back().num_parameters();
  flat_parameters_ = at::zeros({total}, at::kFloat);
  flat_gradients_ = at::zeros({total}, at::kFloat);
  for (size_t position = 0; position < modules_.size(); ++position) {
    const LoraModule& module = modules_[position];
    const int64_t down = module.down_numel(), up = module.up_numel();
    LoraPair pair{.down = make_parameter(module.offset, module.down_sizes()),
                  .up = make_parameter(module.offset + down, module.up_sizes()),
                  .scale = module.scale,
                  .dropout = {.p = module.dropout,
                              .rank_p = module.rank_dropout,
                              .module_p = module.module_dropout,
                              .seed = seed,
                              .module = static_cast<uint32_t>(position)}};
    init_down({flat_parameters_.data_ptr<float>() + module.offset, static_cast<size_t>(down)}, module.init, module.rank,
              seed, position);
    if (module.use_dora) {
      pair.magnitude = make_parameter(module.offset + down + up, {module.layer->weight.size(0)});
      const at::NoGradGuard no_grad;
      pair.magnitude.copy_(dora_norm(module.layer->weight.to(at::kCPU), pair));  // the adapter is here until to()
    }
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
    const auto add = [&](const std::string& key, const at::Tensor& value, LoraPart part) {
      result.push_back({key, value, value.grad(), part, i});
    };
    add(keys[i].down, pair.down, LoraPart::down);
    add(keys[i].up, pair.up, LoraPart::up);
    if (pair.magnitude.defined()) add(keys[i].magnitude, pair.magnitude, LoraPart::magnitude);
  }
  return result;
}

}  // namespace lorashard
