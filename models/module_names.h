// The layers an adapter file may speak of, under every name files give them: diffusers' paths ("down_blocks.1...") and
// those of the original repositories ("input_blocks.4.1...", "sgm"), dots or underscores between the words. A flattened
// name can't be taken apart without this list. Called by the readers and writers of adapter files.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace lorashard {

class ModuleNames {
 public:
  /// Those of every Stable Diffusion 1.x, 2.x and XL base together: their names don't contradict each other.
  static const ModuleNames& standard();

  /// `component` is "unet", "text_encoder" or "text_encoder_2"; `layers_per_block` is the UNet's.
  void add(const std::string& component, const std::vector<std::string>& paths, int64_t layers_per_block = 2);

  /// diffusers' path of the layer that `name` flattens to ("down_blocks_0_...", "input_blocks_4_1_...";
  /// '.' and '_' are the same). Nothing where there is none.
  std::optional<std::string> find(const std::string& component, const std::string& name) const;

  /// The original repository's name of a UNet layer: "input_blocks.4.1.transformer_blocks.0.attn1.to_q". Throws
  /// Error(bad_data) for a path that has none.
  std::string sgm_name(const std::string& path) const;

 private:
  std::map<std::string, std::map<std::string, std::string>> paths_;  // component -> flattened name -> path
  int64_t layers_per_block_ = 2;
};

/// Whether a layer exists in SDXL's UNet or in SD's (1.x and 2.x have the same): in both, in one, or in neither.
bool in_sdxl_unet(const std::string& path);
bool in_sd_unet(const std::string& path);

/// `name` with '_' for '.'.
std::string flattened(std::string name);

}  // namespace lorashard
