// A base with adapters merged into its weights, in the form it has itself: a folder for diffusers' from_pretrained, or one file in
// the original layout. Called by `lorashard fuse`.
#pragma once
#include <cstdint>
#include <filesystem>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "models/stable_diffusion.h"

namespace lorashard {

/// Layers whose weights differ from the files': component ("unet", "text_encoder", ...) -> diffusers' paths.
using ChangedLayers = std::map<std::string, std::set<std::string>>;

struct FusedFiles {
  int64_t num_layers = 0;            ///< of `changed`
  int64_t num_weight_files = 0;      ///< written anew, of every variant and shard
  std::vector<std::string> skipped;  ///< left out: weights in files that are not rewritten would be those of the base
};

/// Throws Error(usage) when `out` can't be made of `base`: something is there, or the name is not that of the form `base` has. To be
/// called before loading.
void require_place_for_fused(const std::filesystem::path& base, const std::filesystem::path& out);

/// Copies `base.folder`, a folder or one file, to `out`, with the weight and bias of the layers in `changed` taken from `base` (fp32) in
/// every safetensors file that holds them, rounded to that file's type; all else of those files keeps its bytes. `out` appears by one
/// rename. `note` goes into the metadata of the files that were changed ("fused_adapters"). Throws as require_place_for_fused(),
/// Error(io) when writing fails, Error(bad_data) when the files lack a layer.
FusedFiles write_fused_base(const StableDiffusion& base, const ChangedLayers& changed, const std::filesystem::path& out,
                            const std::string& note);

}  // namespace lorashard
