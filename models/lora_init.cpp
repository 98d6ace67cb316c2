#include "models/lora_init.h"

#include <cmath>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {

void init_down(std::span<float> down, const std::string& init, int64_t rank, uint64_t seed, uint64_t position) {
  if (init == "gaussian") {
    fill_normal(down, seed, position, Purpose::lora_init);
    for (float& value : down) value /= static_cast<float>(rank);
    return;
  }
  LORASHARD_CHECK(init == "kaiming", "LoRA init '{}'", init);
  const double bound = 1 / std::sqrt(static_cast<double>(down.size()) / static_cast<double>(rank));
  for (size_t i = 0; i < down.size(); i += 4) {
    const auto words = philox(seed, position, Purpose::lora_init, static_cast<uint32_t>(i / 4));
    for (size_t j = 0; j < 4 && i + j < down.size(); ++j)
      down[i + j] = static_cast<float>(bound * (2 * ((static_cast<double>(words[j]) + 0.5) * 0x1p-32) - 1));
  }
}

}  // namespace lorashard
