// Ranks that apply the same updates have the same weights. Should a bit flip on one (memory, processor, a bug), this
// says where.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "dist/communicator.h"

namespace lorashard {

/// Throws the same AgreedError(internal) on every rank unless `weights` (contiguous, on the CPU) has the same bits on
/// all. It names the ranks that differ from the majority, or from rank 0 where there is none. Collective.
void require_same_weights(Communicator& communicator, const at::Tensor& weights, int64_t step);

}  // namespace lorashard
