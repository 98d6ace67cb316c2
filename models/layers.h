// The leaves of every model: frozen layers whose weights arrive from a state dict. They allocate nothing that is
// touched before load_state_dict() (pages of at::empty), so a full-size model is never in memory twice. Linear and
// Conv2d carry LoRA.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "models/lora_dropout.h"

namespace lorashard {

/// The low-rank pair of one layer: y += scale * up(rank_dropout(down(dropout(x)))). Views into the adapter's flat tensor.
struct LoraPair {
  at::Tensor down;       ///< fp32 [rank, in]; of a convolution [rank, in, k, k]
  at::Tensor up;         ///< fp32 [out, rank]; of a convolution [out, rank, 1, 1]
  double scale = 1;      ///< alpha / rank, or alpha / sqrt(rank)
  at::Tensor magnitude = {};  ///< of DoRA: fp32 [out]; undefined: plain LoRA
  LoraDropout dropout = {};
};

/// A layer that may carry LoRA: its frozen weight and bias (undefined: none).
class AdaptableLayer : public torch::nn::Module {
 public:
  at::Tensor weight, bias;
  std::optional<LoraPair> lora;
};

/// y = x W^T + b (+ LoRA). weight [out, in].
class Linear : public AdaptableLayer {
 public:
  Linear(int64_t in_features, int64_t out_features, bool with_bias = true);
  /// `residual`, where given, is added to the result.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& residual = {}) const;
  int64_t in_features() const { return weight.size(1); }
  int64_t out_features() const { return weight.size(0); }
};

/// weight [out, in, k, k], symmetric padding (+ LoRA).
class Conv2d : public AdaptableLayer {
 public:
  Conv2d(int64_t in_channels, int64_t out_channels, int64_t kernel, int64_t stride = 1, int64_t padding = 0);
  at::Tensor forward(const at::Tensor& x) const;
  /// Of a 1x1 convolution: the same of an image's pixels, tokens [B, h * w, in] to [B, h * w, out].
  at::Tensor forward_tokens(const at::Tensor& tokens) const;

  int64_t stride, padding;
};

class GroupNorm : public torch::nn::Module {
 public:
  GroupNorm(int64_t num_groups, int64_t num_channels, double eps);
  at::Tensor forward(const at::Tensor& x) const;
  /// silu(forward(x + shift)); `shift` [B, C] may be undefined.
  at::Tensor forward_silu(const at::Tensor& x, const at::Tensor& shift = {}) const;

  at::Tensor weight, bias;
  int64_t num_groups;
  double eps;
};

class LayerNorm : public torch::nn::Module {
 public:
  explicit LayerNorm(int64_t size, double eps = 1e-5);
  at::Tensor forward(const at::Tensor& x) const;

  at::Tensor weight, bias;
  double eps;
};

class Embedding : public torch::nn::Module {
 public:
  Embedding(int64_t num_embeddings, int64_t size);
  at::Tensor forward(const at::Tensor& ids) const;

  at::Tensor weight;
};

/// Modules held in a list under the names "0", "1", ... as torch.nn.ModuleList has them.
template <class M>
class ModuleList : public torch::nn::Module {
 public:
  std::shared_ptr<M> append(std::shared_ptr<M> module) {
    items_.push_back(register_module(std::to_string(items_.size()), std::move(module)));
    return items_.back();
  }
  size_t size() const { return items_.size(); }
  M& operator[](size_t i) const { return *items_[i]; }
  auto begin() const { return items_.begin(); }
  auto end() const { return items_.end(); }

 private:
  std::vector<std::shared_ptr<M>> items_;
};

}  // namespace lorashard
