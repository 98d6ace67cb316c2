// Attention over few tokens on the CPU as one node of the graph: where the tokens of a picture fit in the cache, the
// flash kernels spend their time on preparing matrix products of 4 to 40 columns.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lorashard {

/// Whether small_attention() takes these: fp32 on the CPU, few enough tokens.
bool is_small_attention(const at::Tensor& q, const at::Tensor& k, int64_t heads);

/// As multi_head_attention() (models/attention.h), with gradients. Same bits for any number of threads.
at::Tensor small_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t heads);

}  // namespace lorashard
