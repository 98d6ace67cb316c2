#include "models/module_names.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <set>
#include <string_view>

#include "dist/error.h"

namespace lorashard {
namespace {

using Paths = std::vector<std::string>;

void add_resnet(Paths& paths, const std::string& at) {
  for (const char* layer : {"conv1", "time_emb_proj", "conv2", "conv_shortcut"}) paths.push_back(at + "." + layer);
}

void add_transformer(Paths& paths, const std::string& at, int depth) {
  paths.push_back(at + ".proj_in");
  paths.push_back(at + ".proj_out");
  for (int i = 0; i < depth; ++i) {
    const std::string block = fmt::format("{}.transformer_blocks.{}.", at, i);
    for (const char* attention : {"attn1", "attn2"})
      for (const char* layer : {"to_q", "to_k", "to_v", "to_out.0"})
        paths.push_back(block + attention + "." + layer);
    paths.push_back(block + "ff.net.0.proj");
    paths.push_back(block + "ff.net.2");
  }
}

/// `depths`: transformer layers of each down block (0: it has no attention), reversed for the up blocks.
Paths unet_paths(const std::vector<int>& depths, bool with_added_conditions) {
  constexpr int kLayersPerBlock = 2;
  Paths paths = {"conv_in", "conv_out", "time_embedding.linear_1", "time_embedding.linear_2"};
  if (with_added_conditions) {
    paths.push_back("add_embedding.linear_1");
    paths.push_back("add_embedding.linear_2");
  }
  const size_t blocks = depths.size();
  for (size_t i = 0; i < blocks; ++i)
    for (const bool up : {false, true}) {
      const std::string block = fmt::format("{}_blocks.{}", up ? "up" : "down", i);
      const int depth = depths[up ? blocks - 1 - i : i];
      for (int j = 0; j < kLayersPerBlock + (up ? 1 : 0); ++j) {
        add_resnet(paths, fmt::format("{}.resnets.{}", block, j));
        if (depth > 0) add_transformer(paths, fmt::format("{}.attentions.{}", block, j), depth);
      }
      if (i + 1 < blocks) paths.push_back(block + (up ? ".upsamplers.0.conv" : ".downsamplers.0.conv"));
    }
  add_resnet(paths, "mid_block.resnets.0");
  add_resnet(paths, "mid_block.resnets.1");
  add_transformer(paths, "mid_block.attentions.0", std::max(1, depths.back()));
  return paths;
}

Paths text_encoder_paths(int layers) {
  Paths paths = {"text_projection"};
  for (int i = 0; i < layers; ++i)
    for (const char* layer :
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1", "mlp.fc2"})
      paths.push_back(fmt::format("text_model.encoder.layers.{}.{}", i, layer));
  return paths;
}

constexpr int kMostTextLayers = 32;  // of SDXL's second encoder; the others have 12 and 23

const Paths& sd_unet() {
  static const Paths paths = unet_paths({1, 1, 1, 0}, /*with_added_conditions=*/false);
  return paths;
}

const Paths& sdxl_unet() {
  static const Paths paths = unet_paths({0, 2, 10}, /*with_added_conditions=*/true);
  return paths;
}

bool contains(const Paths& paths, const std::string& path) {
  return std::find(paths.begin(), paths.end(), path) != paths.end();
}

/// The words of a path: "down_blocks", "1", "resnets", "0", and the rest in one piece.
struct BlockPath {
  std::string_view block, part, rest;
  int64_t block_index = -1, part_index = -1;
};

std::string_view next_word(std::string_view& path) {
  const size_t dot = path.find('.');
  const std::string_view word = path.substr(0, dot);
  path.remove_prefix(dot == path.npos ? path.size() : dot + 1);
  return word;
}

int64_t next_number(std::string_view& path) {
  const std::string_view word = next_word(path);
  int64_t number = -1;
  const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), number);
  return fault == std::errc() && end == word.data() + word.size() ? number : -1;
}

BlockPath split_block_path(std::string_view path) {
  BlockPath found;
  found.block = next_word(path);
  if (found.block != "mid_block") found.block_index = next_number(path);
  found.part = next_word(path);
  found.part_index = next_number(path);
  found.rest = path;
  return found;
}

using Renaming = std::pair<std::string_view, std::string_view>;

template <size_t N>
std::string_view renamed(std::string_view name, const std::array<Renaming, N>& table) {
  const auto found = std::ranges::find(table, name, &Renaming::first);
  return found == table.end() ? std::string_view() : found->second;
}

constexpr std::array<Renaming, 6> kOutsideBlocks = {{{"conv_in", "input_blocks.0.0"},
                                                     {"conv_out", "out.2"},
                                                     {"time_embedding.linear_1", "time_embed.0"},
                                                     {"time_embedding.linear_2", "time_embed.2"},
                                                     {"add_embedding.linear_1", "label_emb.0.0"},
                                                     {"add_embedding.linear_2", "label_emb.0.2"}}};
constexpr std::array<Renaming, 4> kResnet = {{{"conv1", "in_layers.2"},
                                              {"conv2", "out_layers.3"},
                                              {"time_emb_proj", "emb_layers.1"},
                                              {"conv_shortcut", "skip_connection"}}};

}  // namespace

std::string flattened(std::string name) {
  std::ranges::replace(name, '.', '_');
  return name;
}

bool in_sdxl_unet(const std::string& path) { return contains(sdxl_unet(), path); }
bool in_sd_unet(const std::string& path) { return contains(sd_unet(), path); }

const ModuleNames& ModuleNames::standard() {
  static const ModuleNames names = [] {
    ModuleNames all;
    all.add("unet", sd_unet());
    all.add("unet", sdxl_unet());
    all.add("text_encoder", text_encoder_paths(kMostTextLayers));
    all.add("text_encoder_2", text_encoder_paths(kMostTextLayers));
    return all;
  }();
  return names;
}

void ModuleNames::add(const std::string& component, const std::vector<std::string>& paths, int64_t layers_per_block) {
  constexpr std::string_view kTextModel = "text_model.";
  auto& names = paths_[component];
  const auto add_name = [&](const std::string& name, const std::string& path) {
    const auto [entry, is_new] = names.emplace(flattened(name), path);
    LORASHARD_CHECK(is_new || entry->second == path, "'{}' is both '{}' and '{}'", name, entry->second, path);
  };
  if (component == "unet") layers_per_block_ = layers_per_block;
  for (const std::string& path : paths) add_name(path, path);
  for (const std::string& path : paths) {
    if (component == "unet") add_name(sgm_name(path), path);
    // transformers 5 drops the first word.
    if (component != "unet" && path.starts_with(kTextModel)) add_name(path.substr(kTextModel.size()), path);
  }
}

std::optional<std::string> ModuleNames::find(const std::string& component, const std::string& name) const {
  const auto names = paths_.find(component);
  if (names == paths_.end()) return std::nullopt;
  const auto found = names->second.find(flattened(name));
  return found == names->second.end() ? std::nullopt : std::optional(found->second);
}

// Generative Models' openaimodel.py counts blocks through: each level has layers_per_block resnets and a sampler.
std::string ModuleNames::sgm_name(const std::string& path) const {
  if (const auto name = renamed(path, kOutsideBlocks); !name.empty()) return std::string(name);
  const BlockPath at = split_block_path(path);
  const int64_t level = layers_per_block_ + 1;
  const std::string rest(at.part == "resnets" ? renamed(at.rest, kResnet) : at.rest);
  const int64_t inner = at.part == "resnets" ? 0 : 1;
  if (at.part_index >= 0 && !rest.empty()) {
    if (at.block == "mid_block") return fmt::format("middle_block.{}.{}", inner == 1 ? 1 : 2 * at.part_index, rest);
    const int64_t first = level * at.block_index;
    if (at.block == "down_blocks" && at.part == "downsamplers") return fmt::format("input_blocks.{}.0.op", first + level);
    if (at.block == "down_blocks") return fmt::format("input_blocks.{}.{}.{}", first + at.part_index + 1, inner, rest);
    if (at.block == "up_blocks" && at.part == "upsamplers") {
      const bool attention = find("unet", fmt::format("up_blocks.{}.attentions.0.proj_in", at.block_index)).has_value();
      return fmt::format("output_blocks.{}.{}.{}", first + level - 1, attention ? 2 : 1, rest);
    }
    if (at.block == "up_blocks") return fmt::format("output_blocks.{}.{}.{}", first + at.part_index, inner, rest);
  }
  throw Error(ErrorKind::bad_data, fmt::format("naming layers of the UNet: '{}' has no name in the original layout", path));
}

}  // namespace lorashard
