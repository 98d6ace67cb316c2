#include "models/embeddings.h"

#include <ATen/ATen.h>

#include <cmath>

namespace lorashard {

at::Tensor get_timestep_embedding(const at::Tensor& timesteps, int64_t embedding_dim, bool flip_sin_to_cos,
                                  double downscale_freq_shift) {
  const int64_t half_dim = embedding_dim / 2;
  // The order of operations is diffusers', so that the angles round alike: at t = 999 one ulp more is visible.
  at::Tensor exponent = -std::log(10000.0) * at::arange(half_dim, timesteps.options().dtype(at::kFloat));
  exponent = exponent / (static_cast<double>(half_dim) - downscale_freq_shift);
  const at::Tensor angles = timesteps.to(at::kFloat).unsqueeze(1) * at::exp(exponent).unsqueeze(0);
  const at::Tensor sines = at::sin(angles), cosines = at::cos(angles);
  return flip_sin_to_cos ? at::cat({cosines, sines}, 1) : at::cat({sines, cosines}, 1);
}

TimestepEmbedding::TimestepEmbedding(int64_t in_channels, int64_t time_embed_dim) {
  linear_1_ = register_module("linear_1", std::make_shared<Linear>(in_channels, time_embed_dim));
  linear_2_ = register_module("linear_2", std::make_shared<Linear>(time_embed_dim, time_embed_dim));
}

at::Tensor TimestepEmbedding::forward(const at::Tensor& sample) const {
  return linear_2_->forward(at::silu(linear_1_->forward(sample)));
}

}  // namespace lorashard
