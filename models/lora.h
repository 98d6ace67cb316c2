// The LoRA adapter of one or more models: which layers have one, and all their parameters as views into ONE flat fp32
// tensor (their gradients into another), so that the sum over ranks, the norm and the optimizer each touch one buffer.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "models/layers.h"
#include "models/safetensors.h"

namespace lorashard {

/// peft's LoraConfig in its own names.
struct LoraOptions {
  int64_t rank = 4;
  double alpha = 4;
  double dropout = 0;
  double rank_dropout = 0, module_dropout = 0;  ///< of kohya's LoRA: models/lora_dropout.h; not with use_dora
  bool use_rslora = false;         ///< scale = alpha / sqrt(rank), not alpha / rank
  bool use_dora = false;           ///< a magnitude vector beside each pair
  std::string init = "gaussian";   ///< of down: N(0, 1 / rank), or "kaiming": U(-1, 1) / sqrt(inputs); up = 0
  std::vector<std::string> target_modules = {"to_k", "to_q", "to_v", "to_out.0"};  ///< models/lora_targets.h
  std::map<std::string, int64_t> rank_pattern = {};  ///< ranks of the layers that match a target, instead of `rank`
  std::map<std::string, double> alpha_pattern = {};
};

struct LoraModule {
  std::string component;  ///< "unet", "text_encoder" or "text_encoder_2"
  std::string path;       ///< "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
  int64_t rank = 0;
  double scale = 1;    ///< alpha / rank, or alpha / sqrt(rank)
  int64_t offset = 0;  ///< of `down` in the flat tensor; `up` and then DoRA's `magnitude` follow it
  bool use_dora = false;
  double dropout = 0, rank_dropout = 0, module_dropout = 0;
  std::string init = {};
  AdaptableLayer* layer = nullptr;

  std::vector<int64_t> down_sizes() const;  ///< [rank, in] or [rank, in, k, k]
  std::vector<int64_t> up_sizes() const;    ///< [out, rank] or [out, rank, 1, 1]
  int64_t down_numel() const;
  int64_t up_numel() const;
  int64_t num_parameters() const;
};

enum class LoraPart { down, up, magnitude };

struct LoraParameter {
  std::string key;      ///< as in the exported diffusers file (models/lora_state_dict.h)
  at::Tensor value;     ///< view into flat_parameters()
  at::Tensor gradient;  ///< view into flat_gradients()
  LoraPart part = LoraPart::down;
  size_t module = 0;  ///< index into modules()
};

class LoraAdapter {
 public:
  /// Adds a pair to every Linear and Conv2d of `model` that a target names (models/lora_targets.h), in the order of
  /// named_modules(). Throws Error(usage) naming a target that fits no layer. Call before allocate().
  void add(const std::string& component, torch::nn::Module& model, const LoraOptions& options);
  /// Throws Error(usage) naming a pattern that fits no layer of any model. Makes the flat tensors, hands each layer its views, and draws down from Philox(seed, position of the module,
  /// lora_init); up = 0, magnitudes are the norms of the frozen weights. Parameters require gradients; .grad is a view
  /// of flat_gradients().
  void allocate(uint64_t seed);
  /// Moves the flat tensors; the layers' parameters stay views into them. After allocate(), before anything else holds one.
  void to(at::Device device);

  const std::vector<LoraModule>& modules() const { return modules_; }
  std::vector<LoraParameter> parameters() const;  ///< down, up(, magnitude) of each module, in flat order
  at::Tensor& flat_parameters() { return flat_parameters_; }
  const at::Tensor& flat_parameters() const { return flat_parameters_; }
  at::Tensor& flat_gradients() { return flat_gradients_; }
  int64_t num_parameters() const { return flat_parameters_.defined() ? flat_parameters_.numel() : 0; }

 private:
  at::Tensor make_parameter(int64_t offset, at::IntArrayRef sizes);

  std::vector<LoraModule> modules_;
  std::map<std::string, bool> patterns_;  // those of rank_pattern and alpha_pattern: whether a layer has its value
  at::Tensor flat_parameters_, flat_gradients_;
};

}  // namespace lorashard
