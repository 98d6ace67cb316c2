// diffusers' blocks of the UNet (models/unets/unet_2d_blocks.py). One class stands for the plain and for the
// cross-attention block of each direction: the plain one has no attentions.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <vector>

#include "models/attention.h"
#include "models/layers.h"
#include "models/resnet.h"

namespace lorashard {

struct UNetBlockOptions {
  int64_t in_channels = 0, out_channels = 0;
  int64_t prev_output_channel = 0;  ///< up blocks: channels that come from the block before
  int64_t temb_channels = 0;
  int64_t num_layers = 2;
  bool with_attention = true;
  bool with_resampling = true;  ///< has a down- or upsampler
  double resnet_eps = 1e-5;
  Transformer2DOptions transformer;  ///< of each attention; its `channels` are out_channels
};

/// CrossAttnDownBlock2D or DownBlock2D.
class UNetDownBlock2D : public torch::nn::Module {
 public:
  explicit UNetDownBlock2D(const UNetBlockOptions& options);
  /// Appends what the up path will take to `res_samples` (down_block_res_samples of diffusers).
  at::Tensor forward(at::Tensor hidden_states, const at::Tensor& silu_temb, const at::Tensor& encoder_hidden_states,
                     std::vector<at::Tensor>& res_samples) const;

 private:
  std::shared_ptr<ModuleList<Transformer2DModel>> attentions_;  // null in a DownBlock2D
  std::shared_ptr<ModuleList<ResnetBlock2D>> resnets_;
  std::shared_ptr<ModuleList<Downsample2D>> downsamplers_;  // null in the last block
};

class UNetMidBlock2DCrossAttn : public torch::nn::Module {
 public:
  explicit UNetMidBlock2DCrossAttn(const UNetBlockOptions& options);
  at::Tensor forward(at::Tensor hidden_states, const at::Tensor& silu_temb,
                     const at::Tensor& encoder_hidden_states) const;

 private:
  std::shared_ptr<ModuleList<Transformer2DModel>> attentions_;
  std::shared_ptr<ModuleList<ResnetBlock2D>> resnets_;
};

/// CrossAttnUpBlock2D or UpBlock2D.
class UNetUpBlock2D : public torch::nn::Module {
 public:
  explicit UNetUpBlock2D(const UNetBlockOptions& options);
  /// Takes its residuals off the end of `res_samples`.
  at::Tensor forward(at::Tensor hidden_states, const at::Tensor& silu_temb, const at::Tensor& encoder_hidden_states,
                     std::vector<at::Tensor>& res_samples) const;

 private:
  std::shared_ptr<ModuleList<Transformer2DModel>> attentions_;  // null in an UpBlock2D
  std::shared_ptr<ModuleList<ResnetBlock2D>> resnets_;
  std::shared_ptr<ModuleList<Upsample2D>> upsamplers_;  // null in the last block
};

}  // namespace lorashard
