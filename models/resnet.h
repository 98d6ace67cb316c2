// diffusers' ResnetBlock2D, Downsample2D and Upsample2D (models/resnet.py, downsampling.py, upsampling.py), as the UNet
// and the VAE use them: SiLU, no dropout, a 1x1 shortcut where the channels change.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

#include "models/layers.h"

namespace lorashard {

class ResnetBlock2D : public torch::nn::Module {
 public:
  /// `temb_channels` 0: no time embedding (the VAE).
  ResnetBlock2D(int64_t in_channels, int64_t out_channels, int64_t temb_channels, int64_t groups, double eps);
  /// `silu_temb` [B, temb_channels] is SiLU(temb): diffusers applies it in every block, here the UNet does so once.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& silu_temb = {}) const;
  /// Keeps only the inputs for backward (models/checkpointed.h).
  void enable_gradient_checkpointing() { gradient_checkpointing_ = true; }

 private:
  at::Tensor run(const at::Tensor& x, const at::Tensor& silu_temb) const;

  bool gradient_checkpointing_ = false;
  std::shared_ptr<GroupNorm> norm1_, norm2_;
  std::shared_ptr<Conv2d> conv1_, conv2_, conv_shortcut_;
  std::shared_ptr<Linear> time_emb_proj_;
};

class Downsample2D : public torch::nn::Module {
 public:
  /// `padding` 1: all sides (UNet); 0: one column right and one row below, as the VAE's encoder has it.
  explicit Downsample2D(int64_t channels, int64_t padding = 1);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  int64_t padding_;
  std::shared_ptr<Conv2d> conv_;
};

/// Nearest x2, then a convolution.
class Upsample2D : public torch::nn::Module {
 public:
  explicit Upsample2D(int64_t channels);
  at::Tensor forward(const at::Tensor& x) const;

 private:
  std::shared_ptr<Conv2d> conv_;
};

}  // namespace lorashard
