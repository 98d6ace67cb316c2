#include "models/single_file_keys.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <array>
#include <charconv>
#include <string_view>
#include <utility>
#include <vector>

namespace lorashard {
namespace {

using Renames = std::vector<std::pair<std::string_view, std::string_view>>;

std::vector<std::string_view> split(std::string_view key) {
  std::vector<std::string_view> words;
  for (size_t begin = 0;;) {
    const size_t dot = key.find('.', begin);
    words.push_back(key.substr(begin, dot == key.npos ? key.npos : dot - begin));
    if (dot == key.npos) return words;
    begin = dot + 1;
  }
}

std::optional<int64_t> number(std::string_view word) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
  if (word.empty() || error != std::errc() || end != word.data() + word.size() || value < 0) return std::nullopt;
  return value;
}

/// `text` with the one of `renames` applied whose first is `text` or followed by a dot in it; nothing when none is.
std::optional<std::string> renamed(std::string_view text, const Renames& renames) {
  for (const auto& [from, to] : renames) {
    if (text.starts_with(from) && (text.size() == from.size() || text[from.size()] == '.'))
      return std::string(to) + std::string(text.substr(from.size()));
  }
  return std::nullopt;
}

/// What follows the first `count` words of `key`.
std::string_view rest_of(std::string_view key, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const size_t dot = key.find('.');
    if (dot == key.npos) return {};
    key.remove_prefix(dot + 1);
  }
  return key;
}

const Renames kUnetResnet = {{"in_layers.0", "norm1"},       {"in_layers.2", "conv1"},
                             {"out_layers.0", "norm2"},      {"out_layers.3", "conv2"},
                             {"emb_layers.1", "time_emb_proj"}, {"skip_connection", "conv_shortcut"}};

/// A layer of an input or output block. `part` 0 is a resnet (or a downsampler), 1 and 2 are attentions and upsamplers.
std::optional<std::string> unet_layer(const std::string& block, int64_t layer, int64_t part, std::string_view rest) {
  if (const auto conv = renamed(rest, {{"op", ".downsamplers.0.conv"}}); conv && part == 0) return block + *conv;
  if (const auto conv = renamed(rest, {{"conv", ".upsamplers.0.conv"}}); conv && part > 0) return block + *conv;
  if (part == 0) {
    const auto resnet = renamed(rest, kUnetResnet);
    return resnet ? std::optional(fmt::format("{}.resnets.{}.{}", block, layer, *resnet)) : std::nullopt;
  }
  if (part == 1) return fmt::format("{}.attentions.{}.{}", block, layer, rest);
  return std::nullopt;
}

std::optional<std::string> vae_resnet(const std::string& place, std::string_view rest) {
  const auto shortcut = renamed(rest, {{"nin_shortcut", "conv_shortcut"}});
  return place + "." + (shortcut ? *shortcut : std::string(rest));
}

bool is_without_effect(std::string_view rest) {
  return rest.ends_with("position_ids") || rest == "logit_scale" || rest == "attn_mask" || rest.starts_with("loss.");
}

/// Calls `take` with each key under `prefix`, without it.
template <class F>
void for_each_under(const StateDict& state, const std::string& prefix, F&& take) {
  for (auto at = state.lower_bound(prefix); at != state.end() && at->first.starts_with(prefix); ++at) {
    const std::string rest = at->first.substr(prefix.size());
    if (!is_without_effect(rest)) take(rest, at->second);
  }
}

}  // namespace

std::optional<std::string> diffusers_unet_key(const std::string& key, int64_t layers_per_block) {
  const Renames outer = {{"time_embed.0", "time_embedding.linear_1"}, {"time_embed.2", "time_embedding.linear_2"},
                         {"label_emb.0.0", "add_embedding.linear_1"}, {"label_emb.0.2", "add_embedding.linear_2"},
                         {"input_blocks.0.0", "conv_in"},             {"out.0", "conv_norm_out"},
                         {"out.2", "conv_out"}};
  if (auto name = renamed(key, outer)) return name;
  const auto words = split(key);
  const auto block = words.size() > 2 ? number(words[1]) : std::nullopt;
  if (!block) return std::nullopt;
  if (words[0] == "middle_block") {
    if (*block == 1) return fmt::format("mid_block.attentions.0.{}", rest_of(key, 2));
    const auto resnet = renamed(rest_of(key, 2), kUnetResnet);
    return resnet && *block <= 2 ? std::optional(fmt::format("mid_block.resnets.{}.{}", *block / 2, *resnet)) : std::nullopt;
  }
  const auto part = words.size() > 3 ? number(words[2]) : std::nullopt;
  if (!part) return std::nullopt;
  const int64_t layers = layers_per_block + 1;  // input blocks: the downsampler counts as one; output blocks have one more
  if (words[0] == "input_blocks" && *block > 0) {
    return unet_layer(fmt::format("down_blocks.{}", (*block - 1) / layers), (*block - 1) % layers, *part, rest_of(key, 3));
  }
  if (words[0] == "output_blocks") {
    return unet_layer(fmt::format("up_blocks.{}", *block / layers), *block % layers, *part, rest_of(key, 3));
  }
  return std::nullopt;
}

std::optional<std::string> diffusers_vae_key(const std::string& key, int64_t num_blocks) {
  if (key.starts_with("quant_conv.") || key.starts_with("post_quant_conv.")) return key;
  const auto words = split(key);
  const bool is_encoder = words[0] == "encoder";
  if (words.size() < 3 || (!is_encoder && words[0] != "decoder")) return std::nullopt;
  const std::string half(words[0]);
  const std::string_view inside = rest_of(key, 1);
  if (const auto name = renamed(inside, {{"conv_in", "conv_in"}, {"conv_out", "conv_out"}, {"norm_out", "conv_norm_out"}}))
    return half + "." + *name;
  if (words[1] == "mid") {
    const Renames attention = {{"norm", "group_norm"}, {"q", "to_q"}, {"k", "to_k"}, {"v", "to_v"}, {"proj_out", "to_out.0"}};
    const std::string_view rest = rest_of(key, 3);
    if (words[2] == "block_1") return vae_resnet(half + ".mid_block.resnets.0", rest);
    if (words[2] == "block_2") return vae_resnet(half + ".mid_block.resnets.1", rest);
    const auto name = words[2] == "attn_1" ? renamed(rest, attention) : std::nullopt;
    return name ? std::optional(half + ".mid_block.attentions.0." + *name) : std::nullopt;
  }
  const auto level = number(words[2]);
  if (words[1] != (is_encoder ? "down" : "up") || words.size() < 5 || !level || *level >= num_blocks) return std::nullopt;
  // The decoder's levels are numbered by resolution there, by order here.
  const std::string block = is_encoder ? fmt::format("encoder.down_blocks.{}", *level)
                                       : fmt::format("decoder.up_blocks.{}", num_blocks - 1 - *level);
  if (words[3] == "block") return vae_resnet(fmt::format("{}.resnets.{}", block, words[4]), rest_of(key, 5));
  const auto sampler = renamed(rest_of(key, 3), {{"downsample.conv", "downsamplers.0.conv"}, {"upsample.conv", "upsamplers.0.conv"}});
  return sampler ? std::optional(block + "." + *sampler) : std::nullopt;
}

StateDict unet_of_original(const StateDict& state, const std::string& prefix, int64_t layers_per_block) {
  StateDict out;
  for_each_under(state, prefix, [&](const std::string& key, const at::Tensor& tensor) {
    out[diffusers_unet_key(key, layers_per_block).value_or(prefix + key)] = tensor;
  });
  return out;
}

StateDict vae_of_original(const StateDict& state, const std::string& prefix, int64_t num_blocks) {
  StateDict out;
  for_each_under(state, prefix, [&](const std::string& key, const at::Tensor& tensor) {
    const bool is_attention = key.find(".attn_1.") != std::string::npos;
    // The attention's projections are 1x1 convolutions there, linear layers here.
    at::Tensor value = tensor;
    while (is_attention && value.dim() > 2 && value.size(-1) == 1) value = value.squeeze(-1);
    out[diffusers_vae_key(key, num_blocks).value_or(prefix + key)] = value;
  });
  return out;
}

StateDict clip_of_original(const StateDict& state, const std::string& prefix, bool with_projection) {
  StateDict out;
  for_each_under(state, prefix, [&](const std::string& key, const at::Tensor& tensor) {
    if (key.starts_with("text_projection") && !with_projection) return;
    // Some merged models lack the outer name.
    const bool named = key.starts_with("text_model.") || key.starts_with("text_projection.");
    out[named ? key : "text_model." + key] = tensor;
  });
  return out;
}

StateDict open_clip_of_original(const StateDict& state, const std::string& prefix, int64_t num_hidden_layers,
                                bool with_projection) {
  const Renames outer = {{"positional_embedding", "embeddings.position_embedding.weight"},
                         {"token_embedding", "embeddings.token_embedding"},
                         {"ln_final", "final_layer_norm"}};
  const Renames inner = {{"ln_1", "layer_norm1"},
                         {"ln_2", "layer_norm2"},
                         {"mlp.c_fc", "mlp.fc1"},
                         {"mlp.c_proj", "mlp.fc2"},
                         {"attn.out_proj", "self_attn.out_proj"}};
  StateDict out;
  for_each_under(state, prefix, [&](const std::string& key, const at::Tensor& tensor) {
    if (key == "text_projection") {
      if (with_projection) out["text_projection.weight"] = tensor.t().contiguous();
      return;
    }
    if (const auto name = renamed(key, outer)) {
      out["text_model." + *name] = tensor;
      return;
    }
    const auto words = split(key);
    const auto layer = words.size() > 3 && words[0] == "transformer" && words[1] == "resblocks" ? number(words[2]) : std::nullopt;
    if (layer && *layer >= num_hidden_layers) return;
    const std::string_view rest = rest_of(key, 3);
    const std::string place = layer ? fmt::format("text_model.encoder.layers.{}.", *layer) : "";
    if (const auto name = renamed(rest, inner); layer && name) {
      out[place + *name] = tensor;
    } else if (layer && (rest == "attn.in_proj_weight" || rest == "attn.in_proj_bias") && tensor.dim() > 0 &&
               tensor.size(0) % 3 == 0) {
      const std::string kind = rest.ends_with("weight") ? "weight" : "bias";
      const int64_t size = tensor.size(0) / 3;
      const std::array<const char*, 3> names = {"q_proj", "k_proj", "v_proj"};
      for (int64_t i = 0; i < 3; ++i)
        out[fmt::format("{}self_attn.{}.{}", place, names[i], kind)] = tensor.narrow(0, i * size, size);
    } else {
      out[prefix + key] = tensor;
    }
  });
  return out;
}

}  // namespace lorashard
