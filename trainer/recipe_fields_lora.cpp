// Keys of [lora].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_lora_fields(Fields& f, Recipe& r) {
  f.push_back({"lora", "rank", &r.lora.rank, between(1, 65536), kIdentity, "Rank of the LoRA matrices."});
  f.push_back({"lora", "lora_alpha", &r.lora.lora_alpha, above_zero(), kIdentity,
               "The adapter's output is scaled by lora_alpha / rank. Absent: rank."});
  f.push_back({"lora", "target_modules", &r.lora.target_modules, distinct_names(), kIdentity,
               "UNet layers that get an adapter: those whose path ends with one of these names."});
  f.push_back({"lora", "init", &r.lora.init, one_of({"gaussian"}), kIdentity,
               "How the down matrices start (the up matrices start at 0): normal with deviation 1 / rank."});
  f.push_back({"lora", "train_text_encoder", &r.lora.train_text_encoder, anything(), kIdentity,
               "Give the text encoder an adapter too (SDXL: both text encoders). It is in the same file."});
  f.push_back({"lora", "text_encoder_target_modules", &r.lora.text_encoder_target_modules, distinct_names(), kIdentity,
               "Text encoder layers that get an adapter: those whose path ends with one of these names."});
}

}  // namespace lorashard
