// The first values of a down matrix. Called by models/lora.
#pragma once
#include <cstdint>
#include <span>
#include <string>

namespace lorashard {

/// peft's init_lora_weights. "gaussian": normals / rank. "kaiming" (peft's default, kaiming_uniform with a = sqrt(5)):
/// uniform in (-1, 1) / sqrt(inputs), inputs = down.size() / rank. Drawn from Philox(seed, position, lora_init) as
/// docs/determinism.md says.
void init_down(std::span<float> down, const std::string& init, int64_t rank, uint64_t seed, uint64_t position);

}  // namespace lorashard
