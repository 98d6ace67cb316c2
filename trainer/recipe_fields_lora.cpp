// Keys of [lora].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_lora_fields(Fields& f, Recipe& r) {
  f.push_back({"lora", "rank", &r.lora.rank, between(1, 65536), kIdentity, "Rank of the LoRA matrices."});
  f.push_back({"lora", "lora_alpha", &r.lora.lora_alpha, above_zero(), kIdentity,
               "The adapter's output is scaled by lora_alpha / rank. Absent: rank."});
  f.push_back({"lora", "lora_dropout", &r.lora.lora_dropout, below_one(), kIdentity,
               "Part of an adapter layer's inputs that is dropped in training; the rest is divided by 1 - lora_dropout."});
  f.push_back({"lora", "rank_dropout", &r.lora.rank_dropout, below_one(), kIdentity,
               "Part of each layer's ranks that is dropped in training, drawn for each image; the rest is divided by 1 - rank_dropout."});
  f.push_back({"lora", "module_dropout", &r.lora.module_dropout, below_one(), kIdentity,
               "How often a layer's adapter is left out in training, drawn for each image."});
  f.push_back({"lora", "scale_weight_norms", &r.lora.scale_weight_norms, above_zero(), kIdentity,
               "After each update: where the norm of a layer's change (scale * up * down) is larger than this, both matrices are "
               "scaled down so that it is this. 1 is usual. Absent: no limit."});
  f.push_back({"lora", "target_modules", &r.lora.target_modules, distinct_names(), kIdentity,
               "UNet layers that get an adapter: those whose path ends with one of these names; a name with * or ? is a "
               "pattern for the whole path; `attention`, `attention+ff`, `all-linear` and `conv` (convolutions of resnets, "
               "down- and upsamplers) stand for such lists."});
  f.push_back({"lora", "rank_pattern", &r.lora.rank_pattern, named_values_above_zero(65536), kIdentity,
               "Other ranks for some of these layers, by name, pattern or preset; the longest that fits a layer counts."});
  f.push_back({"lora", "alpha_pattern", &r.lora.alpha_pattern, named_values_above_zero(1e6), kIdentity,
               "Other alphas, likewise."});
  f.push_back({"lora", "use_rslora", &r.lora.use_rslora, anything(), kIdentity,
               "Scale by lora_alpha / sqrt(rank) instead (rank-stabilised LoRA)."});
  f.push_back({"lora", "use_dora", &r.lora.use_dora, anything(), kIdentity,
               "Train each layer's magnitudes beside the pair (DoRA)."});
  f.push_back({"lora", "init", &r.lora.init, one_of({"gaussian", "kaiming"}), kIdentity,
               "How the down matrices start (the up matrices start at 0): normal with deviation 1 / rank, or uniform "
               "within 1 / sqrt(inputs), which is peft's default."});
  f.push_back({"lora", "lora_weights", &r.lora.lora_weights, anything(), kFree,
               "An adapter to start from, in any layout `lorashard inspect` reads: same layers, same ranks. Read at the "
               "first start only."});
  f.push_back({"lora", "lora_weights_sha256", &r.lora.lora_weights_sha256, anything(), kIdentity,
               "Hash of what lora_weights holds. Filled in at the first start; where it is given, another file is refused."});
  f.push_back({"lora", "train_text_encoder", &r.lora.train_text_encoder, anything(), kIdentity,
               "Give the text encoder an adapter too (SDXL: both text encoders). It is in the same file."});
  f.push_back({"lora", "text_encoder_target_modules", &r.lora.text_encoder_target_modules, distinct_names(), kIdentity,
               "Text encoder layers that get an adapter: chosen as by target_modules."});
}

}  // namespace lorashard
