// Adapter files of any format as one description: which layers, and the tensors of each. Read by models/adapter_file,
// written by models/adapter_write, applied to weights by models/adapter_apply; docs/lora_formats.md lists the formats.
// Called by the commands generate, fuse, convert and inspect and by the trainer.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/module_names.h"
#include "models/safetensors.h"

namespace lorashard {

enum class AdapterKind { lora, loha, lokr, full };
std::string to_string(AdapterKind kind);

/// What an adapter does to one layer. `tensors` by kind, with LyCORIS' names:
///   lora  down [rank, in(, k, k)], up [out, rank(, 1, 1)]; mid [rank, rank, k, k] where down is 1x1 (LoCon, Tucker)
///   loha  hada_w1_a, hada_w1_b, hada_w2_a, hada_w2_b (, hada_t1, hada_t2)
///   lokr  lokr_w1 or lokr_w1_a, lokr_w1_b; lokr_w2 or lokr_w2_a, lokr_w2_b (, lokr_t2)
///   full  diff, of the weight's shape
/// and with any: dora_scale [out, 1(, 1, 1)] or, the older kind, [1, in(, 1, 1)]; diff_b [out], added to the bias.
struct AdapterModule {
  std::string component;  ///< "unet", "text_encoder" or "text_encoder_2"
  std::string path;       ///< diffusers' path of the layer
  AdapterKind kind = AdapterKind::lora;
  StateDict tensors = {};
  std::optional<double> alpha = {};

  bool has(const std::string& tensor) const { return tensors.contains(tensor); }
  int64_t rank() const;  ///< 0 where there is none: full, or a lokr of whole factors
  double scale() const;  ///< alpha / rank; 1 without alpha or without rank
};

struct Adapter {
  std::string format;                  ///< "diffusers", "peft", "kohya" or "lycoris"
  std::vector<AdapterModule> modules;  ///< by component, then path
  Metadata metadata;                   ///< of the file
  std::vector<std::string> skipped;    ///< keys that were left out: bundled embeddings

  bool is_sdxl() const;  ///< layers that only SDXL has, or text of its width
};

/// Reads a .safetensors file, a .bin, .pt, .pth or .ckpt file (tensors only, without Python), a PEFT folder or a folder
/// that holds one of them. Layers are looked up in `names`. Throws Error(usage) where there is no file and
/// Error(bad_data) listing keys that belong to no known layer or format, and layers that lack a tensor.
Adapter read_adapter(const std::filesystem::path& path, const ModuleNames& names = ModuleNames::standard());

/// Whether read_adapter() would find something in this folder.
bool is_adapter_folder(const std::filesystem::path& folder);

/// SHA-256 of an adapter's file, or over the names and SHA-256 of the files read_adapter() would read of a folder.
std::string adapter_hash(const std::filesystem::path& path);

/// The same of tensors that were read already; `what` names them in errors. `config_json`: PEFT's adapter_config.json.
Adapter parse_adapter(const StateDict& tensors, const Metadata& metadata, const std::string& what,
                      const ModuleNames& names = ModuleNames::standard(), const std::string& config_json = "");

}  // namespace lorashard
