// A convolution whose weight is frozen. For small images on the CPU it is one matrix product over patches: oneDNN's
// convolution reorders the whole weight in every call, which takes longer than the few products a small image needs.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace lorashard {

/// at::conv2d with square `stride` and `padding`, no gradient for weight and bias. May lay `weight` out anew
/// (channels_last, same values and shape) the first time, so a first call must not run beside another one.
at::Tensor frozen_conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t stride,
                         int64_t padding);

}  // namespace lorashard
