// diffusers' Timesteps and TimestepEmbedding (models/embeddings.py).
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>

#include "models/layers.h"

namespace lorashard {

/// Sinusoids of `timesteps` [B], integers of any type: fp32 [B, embedding_dim], embedding_dim even.
at::Tensor get_timestep_embedding(const at::Tensor& timesteps, int64_t embedding_dim, bool flip_sin_to_cos,
                                  double downscale_freq_shift);

class TimestepEmbedding : public torch::nn::Module {
 public:
  TimestepEmbedding(int64_t in_channels, int64_t time_embed_dim);
  at::Tensor forward(const at::Tensor& sample) const;

 private:
  std::shared_ptr<Linear> linear_1_, linear_2_;
};

}  // namespace lorashard
