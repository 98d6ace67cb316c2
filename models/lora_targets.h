// Which layers a name of target_modules means. A target is one of
//   a suffix    "to_q", "ff.net.2": the path is it, or ends with "." and it (peft's rule);
//   a pattern   anything with * or ?, matched against the whole path: "down_blocks.*.attn2.*" (* also spans dots);
//   a preset    "attention": to_q, to_k, to_v, to_out.0; of text encoders q_proj, k_proj, v_proj, out_proj
//               "attention+ff": those and the feed-forward layers (ff.net.0.proj, ff.net.2; fc1, fc2)
//               "all-linear": every Linear
//               "conv": the convolutions of resnets, down- and upsamplers (LoCon).
// Called by models/lora.
#pragma once
#include <map>
#include <string>

#include "models/layers.h"

namespace lorashard {

bool is_target(const std::string& path, const AdaptableLayer& layer, const std::string& target);

/// Throws Error(usage): no layer of `model` is what `target` names; says which there are.
[[noreturn]] void no_layer_fits(const std::string& component, torch::nn::Module& model, const std::string& target);

/// The value for `path` of rank_pattern or alpha_pattern: that of the longest target that names it (of equally long
/// ones, the first in the alphabet); null where none does.
template <class T>
const std::pair<const std::string, T>* find_pattern(const std::map<std::string, T>& patterns, const std::string& path,
                                                    const AdaptableLayer& layer) {
  const std::pair<const std::string, T>* found = nullptr;
  for (const auto& pattern : patterns)
    if (is_target(path, layer, pattern.first) && (!found || pattern.first.size() > found->first.size()))
      found = &pattern;
  return found;
}

}  // namespace lorashard
