#include "models/layers.h"

#include <ATen/ATen.h>

#include "models/frozen_conv.h"
#include "models/fused_norm.h"
#include "models/lora_linear.h"
#include "models/lora_variants.h"

namespace lorashard {
namespace {

at::Tensor frozen(torch::nn::Module& module, const char* name, at::IntArrayRef shape) {
  return module.register_parameter(name, at::empty(shape, at::kFloat), /*requires_grad=*/false);
}

}  // namespace

Linear::Linear(int64_t in_features, int64_t out_features, bool with_bias) {
  weight = frozen(*this, "weight", {out_features, in_features});
  if (with_bias) bias = frozen(*this, "bias", {out_features});
}

at::Tensor Linear::forward(const at::Tensor& x, const at::Tensor& residual) const {
  if (!lora) return frozen_linear(x, weight, bias, residual);
  return is_plain(*lora) ? lora_linear(x, weight, bias, *lora, residual)
                         : lora_variant_linear(x, weight, bias, *lora, residual);
}

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride_, int64_t padding_)
    : stride(stride_), padding(padding_) {
  weight = frozen(*this, "weight", {out_channels, in_channels, kernel, kernel});
  bias = frozen(*this, "bias", {out_channels});
}

at::Tensor Conv2d::forward(const at::Tensor& x) const {
  return lora ? lora_conv2d(x, weight, bias, *lora, stride, padding) : frozen_conv2d(x, weight, bias, stride, padding);
}

at::Tensor Conv2d::forward_tokens(const at::Tensor& tokens) const {
  const auto matrix = [](const at::Tensor& kernel) { return kernel.flatten(1); };
  if (!lora) return frozen_linear(tokens, matrix(weight), bias);
  const LoraPair pair{.down = matrix(lora->down),
                      .up = matrix(lora->up),
                      .scale = lora->scale,
                      .magnitude = lora->magnitude,
                      .dropout = lora->dropout};
  return lora_variant_linear(tokens, matrix(weight), bias, pair);
}

GroupNorm::GroupNorm(int64_t num_groups_, int64_t num_channels, double eps_) : num_groups(num_groups_), eps(eps_) {
  weight = frozen(*this, "weight", {num_channels});
  bias = frozen(*this, "bias", {num_channels});
}

at::Tensor GroupNorm::forward(const at::Tensor& x) const {
  return fused_group_norm(x, {}, {.weight = weight, .bias = bias, .num_groups = num_groups, .eps = eps});
}

at::Tensor GroupNorm::forward_silu(const at::Tensor& x, const at::Tensor& shift) const {
  return fused_group_norm(x, shift,
                          {.weight = weight, .bias = bias, .num_groups = num_groups, .eps = eps, .silu = true});
}

LayerNorm::LayerNorm(int64_t size, double eps_) : eps(eps_) {
  weight = frozen(*this, "weight", {size});
  bias = frozen(*this, "bias", {size});
}

at::Tensor LayerNorm::forward(const at::Tensor& x) const {
  return at::layer_norm(x, weight.sizes(), weight, bias, eps);
}

Embedding::Embedding(int64_t num_embeddings, int64_t size) { weight = frozen(*this, "weight", {num_embeddings, size}); }

at::Tensor Embedding::forward(const at::Tensor& ids) const { return at::embedding(weight, ids); }

}  // namespace lorashard
