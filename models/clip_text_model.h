// transformers' CLIPTextModel and CLIPTextModelWithProjection (models/clip/modeling_clip.py), fp32 or bf16, no cache.
#pragma once
#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <memory>
#include <vector>

#include "models/layers.h"
#include "models/model_config.h"
#include "models/safetensors.h"

namespace lorashard {

class CLIPTextTransformer;

struct CLIPTextOutput {
  at::Tensor last_hidden_state;         ///< [B, L, hidden_size], after the last layer used and the final layer norm (what SD 1.x and 2.x use)
  at::Tensor penultimate_hidden_state;  ///< [B, L, hidden_size], before the last layer used (what SDXL uses)
  at::Tensor pooled;                    ///< [B, hidden_size], or [B, projection_dim] with projection; always of the last layer
};

/// Parameter names are those of transformers' older files: "text_model.encoder.layers.0.self_attn.q_proj.weight", ….
class CLIPTextModel : public torch::nn::Module {
 public:
  explicit CLIPTextModel(const CLIPTextConfig& config);
  /// `input_ids` int64 [B, L], L <= max_position_embeddings. The hidden states are those without the last `clip_skip` layers, as
  /// encode_prompt(clip_skip) of diffusers' pipelines has them; less than num_hidden_layers.
  CLIPTextOutput forward(const at::Tensor& input_ids, int64_t clip_skip = 0) const;
  /// Keeps only the layers' inputs for backward (models/checkpointed.h).
  void enable_gradient_checkpointing();
  const CLIPTextConfig& config() const { return config_; }

 private:
  CLIPTextConfig config_;
  std::shared_ptr<CLIPTextTransformer> text_model_;
  std::shared_ptr<Linear> text_projection_;  // null without projection
};

/// Keys as this module names them, from either spelling of transformers ("text_model." present or absent).
StateDict normalise_text_encoder_keys(const StateDict& state);

}  // namespace lorashard
