#include "models/lora_targets.h"

#include <fmt/ranges.h>
#include <fnmatch.h>

#include <algorithm>
#include <array>
#include <set>
#include <string_view>

#include "dist/error.h"

namespace lorashard {
namespace {

bool has_suffix(const std::string& path, std::string_view suffix) {
  return path == suffix ||
         (path.size() > suffix.size() && path.ends_with(suffix) && path[path.size() - suffix.size() - 1] == '.');
}

template <size_t N>
bool has_any_suffix(const std::string& path, const std::array<std::string_view, N>& suffixes) {
  return std::ranges::any_of(suffixes, [&](std::string_view suffix) { return has_suffix(path, suffix); });
}

bool is_attention(const std::string& path) {
  constexpr std::array<std::string_view, 8> kProjections = {"to_q",   "to_k",   "to_v",   "to_out.0",
                                                            "q_proj", "k_proj", "v_proj", "out_proj"};
  return has_any_suffix(path, kProjections);
}

bool is_feed_forward(const std::string& path) {
  constexpr std::array<std::string_view, 4> kLayers = {"ff.net.0.proj", "ff.net.2", "fc1", "fc2"};
  return has_any_suffix(path, kLayers);
}

bool is_block_convolution(const std::string& path) {
  constexpr std::array<std::string_view, 3> kParts = {"resnets.", "downsamplers.", "upsamplers."};
  return std::ranges::any_of(kParts, [&](std::string_view part) { return path.find(part) != std::string::npos; });
}

/// The end of `path` that serves as a target: its last word, with the one before where the last is a number
/// ("to_out.0").
std::string target_of(const std::string& path) {
  size_t dot = path.rfind('.');
  if (dot != std::string::npos && dot > 0 && path.find_first_not_of("0123456789", dot + 1) == std::string::npos)
    dot = path.rfind('.', dot - 1);
  return dot == std::string::npos ? path : path.substr(dot + 1);
}

}  // namespace

bool is_target(const std::string& path, const AdaptableLayer& layer, const std::string& target) {
  const bool is_convolution = layer.weight.dim() == 4;
  if (target == "attention") return is_attention(path);
  if (target == "attention+ff") return is_attention(path) || is_feed_forward(path);
  if (target == "all-linear") return !is_convolution;
  if (target == "conv") return is_convolution && is_block_convolution(path);
  if (target.find_first_of("*?") != std::string::npos) return fnmatch(target.c_str(), path.c_str(), 0) == 0;
  return has_suffix(path, target);
}

void no_layer_fits(const std::string& component, torch::nn::Module& model, const std::string& target) {
  std::set<std::string> targets;
  for (const auto& item : model.named_modules("", /*include_self=*/false))
    if (dynamic_cast<const AdaptableLayer*>(item.value().get())) targets.insert(target_of(item.key()));
  throw Error(
      ErrorKind::usage,
      fmt::format("adding LoRA to '{}': no layer's path fits target module '{}'", component, target),
      fmt::format("paths end with: {}; presets are attention, attention+ff, all-linear, conv; patterns have * or ?",
                  fmt::join(targets, ", ")));
}

}  // namespace lorashard
