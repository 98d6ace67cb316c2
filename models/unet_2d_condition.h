// diffusers' UNet2DConditionModel (models/unets/unet_2d_condition.py) for SD 1.x and 2.x (SDXL's text_time embedding as
// well where the config asks for it). Parameter names are diffusers' state-dict keys.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>

#include "models/layers.h"
#include "models/model_config.h"

namespace lorashard {

class UNet2DConditionModel : public torch::nn::Module {
 public:
  explicit UNet2DConditionModel(const UNet2DConditionConfig& config);
  ~UNet2DConditionModel() override;
  /// `sample` [B, in_channels, h, w]; `timesteps` int64 [B]; `encoder_hidden_states` [B, L, cross_attention_dim].
  /// Returns [B, out_channels, h, w]. h and w must be multiples of 2^(blocks - 1).
  at::Tensor forward(const at::Tensor& sample, const at::Tensor& timesteps,
                     const at::Tensor& encoder_hidden_states) const;
  const UNet2DConditionConfig& config() const { return config_; }

 private:
  struct Parts;
  UNet2DConditionConfig config_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace lorashard
