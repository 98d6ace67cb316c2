// Group normalisation with what stands around it in the UNet (an added time embedding, SiLU) as one node of the graph.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lorashard {

struct GroupNormWork {
  const at::Tensor& weight;
  const at::Tensor& bias;
  int64_t num_groups;
  double eps;
  bool silu = false;
};

/// silu(group_norm(x + shift)), without silu where `work` says so; weight and bias are frozen. `shift` [B, C] is added
/// to every pixel and may be undefined. Small fp32 channels_last images on the CPU take one pass of our own, others
/// ATen's.
at::Tensor fused_group_norm(const at::Tensor& x, const at::Tensor& shift, const GroupNormWork& work);

}  // namespace lorashard
