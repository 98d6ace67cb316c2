// diffusers' Attention, FeedForward (GEGLU), BasicTransformerBlock and Transformer2DModel
// (models/attention_processor.py, attention.py, transformers/transformer_2d.py) as SD's UNet uses them: no dropout, no
// mask, cross-attention on text.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

#include "models/layers.h"

namespace lorashard {

/// softmax(q k^T / sqrt(d)) v, heads side by side in the last dimension: q [B, L, heads * d], k and v [B, S, heads *
/// d]. Softmax and sums are fp32 for any dtype, so a config's upcast_attention asks for nothing more.
at::Tensor multi_head_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t heads);

class Attention : public torch::nn::Module {
 public:
  /// `cross_attention_dim` 0: self-attention.
  Attention(int64_t query_dim, int64_t cross_attention_dim, int64_t heads);
  /// Returns attention + `residual`.
  at::Tensor forward(const at::Tensor& hidden_states, const at::Tensor& encoder_hidden_states,
                     const at::Tensor& residual) const;

 private:
  int64_t heads_;
  std::shared_ptr<Linear> to_q_, to_k_, to_v_;
  std::shared_ptr<ModuleList<Linear>> to_out_;
};

/// GEGLU to 4 * dim, then back: keys "net.0.proj" and "net.2".
class FeedForward : public torch::nn::Module {
 public:
  explicit FeedForward(int64_t dim);
  at::Tensor forward(const at::Tensor& hidden_states, const at::Tensor& residual) const;

 private:
  std::shared_ptr<Linear> proj_, out_;
};

class BasicTransformerBlock : public torch::nn::Module {
 public:
  BasicTransformerBlock(int64_t dim, int64_t heads, int64_t cross_attention_dim);
  at::Tensor forward(const at::Tensor& hidden_states, const at::Tensor& encoder_hidden_states) const;

 private:
  std::shared_ptr<LayerNorm> norm1_, norm2_, norm3_;
  std::shared_ptr<Attention> attn1_, attn2_;
  std::shared_ptr<FeedForward> ff_;
};

struct Transformer2DOptions {
  int64_t heads = 8, channels = 320, num_layers = 1, cross_attention_dim = 768, norm_num_groups = 32;
  bool use_linear_projection = false;  ///< proj_in and proj_out: Linear (SD 2.x) or 1x1 convolutions (SD 1.x)
};

class Transformer2DModel : public torch::nn::Module {
 public:
  explicit Transformer2DModel(const Transformer2DOptions& options);
  /// `x` [B, channels, h, w].
  at::Tensor forward(const at::Tensor& x, const at::Tensor& encoder_hidden_states) const;
  /// Keeps only the transformer blocks' inputs for backward (models/checkpointed.h).
  void enable_gradient_checkpointing() { gradient_checkpointing_ = true; }

 private:
  bool gradient_checkpointing_ = false;
  std::shared_ptr<GroupNorm> norm_;
  std::shared_ptr<Linear> linear_in_, linear_out_;  // null with convolutions
  std::shared_ptr<Conv2d> conv_in_, conv_out_;      // null with linear projections
  std::shared_ptr<ModuleList<BasicTransformerBlock>> transformer_blocks_;
};

}  // namespace lorashard
