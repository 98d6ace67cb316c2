// One key of an adapter file, taken apart: what every trainer calls a layer and a tensor of it. docs/lora_formats.md
// lists them. Strings only. Called by models/adapter_file.
#pragma once
#include <optional>
#include <string>

namespace lorashard {

struct AdapterKey {
  std::string component;  ///< "unet", "text_encoder", "text_encoder_2"; empty: the key doesn't say
  std::string module;     ///< the layer's name, for ModuleNames::find()
  std::string tensor;     ///< "down", "up", "mid", "alpha", "magnitude", "dora_scale", "hada_w1_a", ..., "lokr_w1", ..., "diff", "diff_b"
  std::string format;     ///< whose spelling it is: "diffusers", "peft", "kohya" or "lycoris"
};

/// Nothing for a key that no known file has.
std::optional<AdapterKey> split_adapter_key(const std::string& key);

/// Embeddings that OneTrainer puts beside the adapter ("bundle_emb.<placeholder>...."): read by nothing here.
bool is_bundled_embedding(const std::string& key);

}  // namespace lorashard
