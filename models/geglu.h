// The gate of the feed-forward layers as one node of the graph.
#pragma once
#include <ATen/core/Tensor.h>

namespace lorashard {

/// a * gelu(b) for x = [a, b] split in the last dimension, with the exact (erf) GELU.
at::Tensor geglu(const at::Tensor& x);

}  // namespace lorashard
