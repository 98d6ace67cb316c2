// A base with adapters merged into its weights, as a folder that diffusers' from_pretrained loads like the base itself.
// Called by `lorashard fuse`.
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

/// Throws Error(usage) for a base in one file. To be called before loading it.
void require_folder_to_fuse(const std::filesystem::path& base);

/// Copies `base.folder` to `out`, with the weight and bias of the layers in `changed` taken from `base` (fp32) in every
/// safetensors file that holds them, rounded to that file's type; all else of those files keeps its bytes. `out`
/// appears by one rename. `note` goes into the metadata of the files that were changed ("fused_adapters"). Throws
/// Error(usage) when `out` exists and isn't an empty folder, Error(io) when writing fails, Error(bad_data) when the
/// files lack a layer.
FusedFiles write_fused_base(const StableDiffusion& base, const ChangedLayers& changed, const std::filesystem::path& out,
                            const std::string& note);

}  // namespace lorashard
