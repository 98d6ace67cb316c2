#include "trainer/parameter_groups.h"

#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "dist/error.h"

namespace lorashard {
namespace {

bool is_text_encoder(const std::string& component) { return component.starts_with("text_encoder"); }

/// Whether `pattern` is one or more whole names of `path` ("attn2.to_k" of "unet.mid_block. ... .attn2.to_k").
bool fits(const std::string& path, const std::string& pattern) {
  return ("." + path + ".").find("." + pattern + ".") != std::string::npos;
}

/// The longest pattern that fits, "" for none; the first in the alphabet of two that are equally long.
std::string longest_fit(const std::map<std::string, double>& rates, const std::string& path) {
  std::string longest;
  for (const auto& [pattern, rate] : rates)
    if (pattern.size() > longest.size() && fits(path, pattern)) longest = pattern;
  return longest;
}

void require_trained(const LoraAdapter& adapter, const Recipe::Optimizer& options) {
  const auto any = [&](const auto& wanted) {
    const auto parameters = adapter.parameters();
    return std::any_of(parameters.begin(), parameters.end(),
                       [&](const LoraParameter& p) { return wanted(p, adapter.modules()[p.module]); });
  };
  const auto require = [](bool trained, const std::string& key, const char* what) {
    if (trained) return;
    throw Error(ErrorKind::usage, fmt::format("recipe: 'optimizer.{}' is set, but {}", key, what), "remove the key");
  };
  const bool text_encoder = any([](const auto&, const LoraModule& m) { return is_text_encoder(m.component); });
  const bool magnitude = any([](const LoraParameter& p, const auto&) { return p.part == LoraPart::magnitude; });
  require(text_encoder || !options.text_encoder_lr, "text_encoder_lr", "no text encoder is trained");
  require(text_encoder || !options.adam_weight_decay_text_encoder, "adam_weight_decay_text_encoder",
          "no text encoder is trained");
  require(magnitude || !options.adam_weight_decay_magnitude, "adam_weight_decay_magnitude",
          "the adapter has no magnitudes: it is not DoRA");
  for (const auto& [pattern, rate] : options.lr_pattern) {
    require(any([&, &pattern = pattern](const auto&, const LoraModule& m) {
              return fits(m.component + "." + m.path, pattern);
            }),
            fmt::format("lr_pattern' has '{}", pattern), "no layer of the adapter has these names in its path");
  }
}

ParameterGroup group_of(const LoraParameter& parameter, const LoraModule& module, const Recipe::Optimizer& options) {
  ParameterGroup group{.name = module.component,
                       .learning_rate = options.learning_rate,
                       .weight_decay = options.adam_weight_decay,
                       .tensors = {}};
  if (is_text_encoder(module.component)) {
    // Prodigy has one rate for all (the scripts warn of this and do the same).
    if (options.optimizer != "prodigy") group.learning_rate = options.text_encoder_lr.value_or(group.learning_rate);
    group.weight_decay = options.adam_weight_decay_text_encoder.value_or(group.weight_decay);
  }
  if (const std::string pattern = longest_fit(options.lr_pattern, module.component + "." + module.path);
      !pattern.empty()) {
    group.learning_rate = options.lr_pattern.at(pattern);
    group.name += ":" + pattern;
  }
  if (parameter.part != LoraPart::down && options.loraplus_lr_ratio != 1.0) {
    group.learning_rate *= options.loraplus_lr_ratio;
    group.name += ".up";
  }
  if (parameter.part == LoraPart::magnitude && options.adam_weight_decay_magnitude) {
    group.weight_decay = *options.adam_weight_decay_magnitude;
    group.name += ".magnitude";
  }
  return group;
}

}  // namespace

int64_t FlatTensor::numel() const {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<>());
}

at::Tensor FlatTensor::of(const at::Tensor& flat) const { return flat.narrow(0, offset, numel()).view(sizes); }

std::vector<at::Tensor> ParameterGroup::ranges_of(const at::Tensor& flat) const {
  std::vector<at::Tensor> ranges;
  for (size_t i = 0; i < tensors.size();) {
    const int64_t begin = tensors[i].offset;
    int64_t end = begin;
    for (; i < tensors.size() && tensors[i].offset == end; ++i) end += tensors[i].numel();
    ranges.push_back(flat.narrow(0, begin, end - begin));
  }
  return ranges;
}

std::vector<ParameterGroup> parameter_groups(const LoraAdapter& adapter, const Recipe::Optimizer& options) {
  require_trained(adapter, options);
  std::vector<ParameterGroup> groups;
  for (const LoraParameter& parameter : adapter.parameters()) {
    ParameterGroup wanted = group_of(parameter, adapter.modules()[parameter.module], options);
    auto group = std::find_if(groups.begin(), groups.end(), [&](const auto& g) { return g.name == wanted.name; });
    if (group == groups.end()) group = groups.insert(groups.end(), std::move(wanted));
    group->tensors.push_back({parameter.value.storage_offset(), parameter.value.sizes().vec()});
  }
  return groups;
}

}  // namespace lorashard
