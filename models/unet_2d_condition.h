// diffusers' UNet2DConditionModel (models/unets/unet_2d_condition.py) for SD 1.x, 2.x and SDXL (addition_embed_type
// "text_time"). Parameter names are diffusers' state-dict keys.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>

#include "models/layers.h"
#include "models/model_config.h"

namespace lorashard {

/// added_cond_kwargs of diffusers: what SDXL's UNet adds to the time embedding. Undefined tensors for SD 1.x and 2.x.
struct AddedConditions {
  at::Tensor text_embeds;  ///< [B, D]: the second text encoder's projected pooled output
  at::Tensor time_ids;     ///< [B, 6]: height, width of the original; top, left of the crop; height, width of the target
};

class UNet2DConditionModel : public torch::nn::Module {
 public:
  explicit UNet2DConditionModel(const UNet2DConditionConfig& config);
  ~UNet2DConditionModel() override;
  /// `sample` [B, in_channels, h, w]; `timesteps` int64 [B]; `encoder_hidden_states` [B, L, cross_attention_dim].
  /// Returns [B, out_channels, h, w]. h and w must be multiples of 2^(blocks - 1).
  /// `added`: both tensors where the config has "text_time", neither otherwise.
  at::Tensor forward(const at::Tensor& sample, const at::Tensor& timesteps, const at::Tensor& encoder_hidden_states,
                     const AddedConditions& added = {}) const;
  /// Trades time for memory: resnets and transformer blocks keep only their inputs and are computed again in backward, as in
  /// diffusers. Same values, same gradients.
  void enable_gradient_checkpointing();
  const UNet2DConditionConfig& config() const { return config_; }

 private:
  at::Tensor time_embedding(const at::Tensor& timesteps, at::ScalarType dtype, const AddedConditions& added) const;

  struct Parts;
  UNet2DConditionConfig config_;
  std::unique_ptr<Parts> parts_;
};

}  // namespace lorashard
