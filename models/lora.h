// The LoRA adapter of one or more models: which layers have one, and all their parameters as views into ONE flat fp32
// tensor (their gradients into another), so that the sum over ranks, the norm and the optimizer each touch one buffer.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <string>
#include <vector>

#include "models/layers.h"
#include "models/safetensors.h"

namespace lorashard {

struct LoraOptions {
  int64_t rank = 4;
  double alpha = 4;
  std::vector<std::string> target_modules = {"to_k", "to_q", "to_v", "to_out.0"};  ///< a layer's path ends with one
};

struct LoraModule {
  std::string component;  ///< "unet" or "text_encoder"
  std::string path;       ///< "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
  int64_t rank = 0;
  double alpha = 0;
  int64_t offset = 0;  ///< of `down` in the flat tensor; `up` follows it
  Linear* layer = nullptr;
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
  /// Adds a pair to every Linear of `model` whose path ends with a target (path == target or ends with "." + target),
  /// in the order of named_modules(). Throws Error(usage) naming a target that no layer has. Call before allocate().
  void add(const std::string& component, torch::nn::Module& model, const LoraOptions& options);
  /// Makes the flat tensors, hands each layer its views, and draws down ~ N(0, 1/rank) (peft's "gaussian") from
  /// Philox(seed, position of the module, lora_init); up = 0. Parameters require gradients; .grad is a view of
  /// flat_gradients().
  void allocate(uint64_t seed);
  /// Moves the flat tensors; the layers' parameters stay views into them. After allocate(), before anything else holds one.
  void to(at::Device device);

  const std::vector<LoraModule>& modules() const { return modules_; }
  std::vector<LoraParameter> parameters() const;  ///< down, up of each module, in flat order
  at::Tensor& flat_parameters() { return flat_parameters_; }
  const at::Tensor& flat_parameters() const { return flat_parameters_; }
  at::Tensor& flat_gradients() { return flat_gradients_; }
  int64_t num_parameters() const { return flat_parameters_.defined() ? flat_parameters_.numel() : 0; }

 private:
  std::vector<LoraModule> modules_;
  at::Tensor flat_parameters_, flat_gradients_;
};

}  // namespace lorashard
