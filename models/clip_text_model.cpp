#include "models/clip_text_model.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <string_view>
#include <utility>

#include "dist/error.h"
#include "models/checkpointed.h"

namespace lorashard {
namespace {

class Attention : public torch::nn::Module {
 public:
  explicit Attention(const CLIPTextConfig& config) : num_heads_(config.num_attention_heads) {
    const int64_t size = config.hidden_size;
    k_proj_ = register_module("k_proj", std::make_shared<Linear>(size, size));
    v_proj_ = register_module("v_proj", std::make_shared<Linear>(size, size));
    q_proj_ = register_module("q_proj", std::make_shared<Linear>(size, size));
    out_proj_ = register_module("out_proj", std::make_shared<Linear>(size, size));
  }

  at::Tensor forward(const at::Tensor& x) const {
    const auto heads = [&](const Linear& projection) {
      return projection.forward(x).view({x.size(0), x.size(1), num_heads_, -1}).transpose(1, 2);
    };
    const at::Tensor y = at::scaled_dot_product_attention(heads(*q_proj_), heads(*k_proj_), heads(*v_proj_),
                                                          /*attn_mask=*/{}, /*dropout_p=*/0.0, /*is_causal=*/true);
    return out_proj_->forward(y.transpose(1, 2).reshape(x.sizes()));
  }

 private:
  int64_t num_heads_;
  std::shared_ptr<Linear> k_proj_, v_proj_, q_proj_, out_proj_;
};

class MLP : public torch::nn::Module {
 public:
  explicit MLP(const CLIPTextConfig& config) : quick_gelu_(config.hidden_act == "quick_gelu") {
    fc1_ = register_module("fc1", std::make_shared<Linear>(config.hidden_size, config.intermediate_size));
    fc2_ = register_module("fc2", std::make_shared<Linear>(config.intermediate_size, config.hidden_size));
  }

  at::Tensor forward(const at::Tensor& x) const {
    const at::Tensor y = fc1_->forward(x);
    return fc2_->forward(quick_gelu_ ? y * (y * 1.702).sigmoid_() : at::gelu(y));
  }

 private:
  bool quick_gelu_;
  std::shared_ptr<Linear> fc1_, fc2_;
};

class EncoderLayer : public torch::nn::Module {
 public:
  explicit EncoderLayer(const CLIPTextConfig& config) {
    const int64_t size = config.hidden_size;
    self_attn_ = register_module("self_attn", std::make_shared<Attention>(config));
    layer_norm1_ = register_module("layer_norm1", std::make_shared<LayerNorm>(size, config.layer_norm_eps));
    mlp_ = register_module("mlp", std::make_shared<MLP>(config));
    layer_norm2_ = register_module("layer_norm2", std::make_shared<LayerNorm>(size, config.layer_norm_eps));
  }

  at::Tensor forward(const at::Tensor& input) const {
    // Its two gradients meet here before that of the penultimate state joins them, with gradient checkpointing or without.
    const at::Tensor x = at::alias(input);
    const at::Tensor y = x + self_attn_->forward(layer_norm1_->forward(x));
    return y + mlp_->forward(layer_norm2_->forward(y));
  }

 private:
  std::shared_ptr<Attention> self_attn_;
  std::shared_ptr<LayerNorm> layer_norm1_, layer_norm2_;
  std::shared_ptr<MLP> mlp_;
};

class Embeddings : public torch::nn::Module {
 public:
  explicit Embeddings(const CLIPTextConfig& config) {
    const int64_t size = config.hidden_size;
    token_embedding_ = register_module("token_embedding", std::make_shared<Embedding>(config.vocab_size, size));
    position_embedding_ =
        register_module("position_embedding", std::make_shared<Embedding>(config.max_position_embeddings, size));
  }

  at::Tensor forward(const at::Tensor& input_ids) const {
    return token_embedding_->forward(input_ids) + position_embedding_->weight.slice(0, 0, input_ids.size(1));
  }

 private:
  std::shared_ptr<Embedding> token_embedding_, position_embedding_;
};

class Encoder : public torch::nn::Module {
 public:
  explicit Encoder(const CLIPTextConfig& config) {
    layers = register_module("layers", std::make_shared<ModuleList<EncoderLayer>>());
    for (int64_t i = 0; i < config.num_hidden_layers; ++i) layers->append(std::make_shared<EncoderLayer>(config));
  }

  std::shared_ptr<ModuleList<EncoderLayer>> layers;
};

void check(const CLIPTextConfig& config) {
  if (config.hidden_act != "quick_gelu" && config.hidden_act != "gelu") {
    throw Error(
        ErrorKind::bad_data,
        fmt::format("text encoder: hidden_act '{}' is unknown; expected quick_gelu or gelu", config.hidden_act));
  }
  if (config.num_hidden_layers < 1 || config.num_attention_heads < 1 ||
      config.hidden_size % config.num_attention_heads != 0) {
    throw Error(ErrorKind::bad_data,
                fmt::format("text encoder: expected num_hidden_layers >= 1 and num_attention_heads to divide "
                            "hidden_size; found num_hidden_layers {}, num_attention_heads {}, hidden_size {}",
                            config.num_hidden_layers, config.num_attention_heads, config.hidden_size));
  }
}

}  // namespace

class CLIPTextTransformer : public torch::nn::Module {
 public:
  explicit CLIPTextTransformer(const CLIPTextConfig& config) {
    embeddings_ = register_module("embeddings", std::make_shared<Embeddings>(config));
    encoder_ = register_module("encoder", std::make_shared<Encoder>(config));
    final_layer_norm_ =
        register_module("final_layer_norm", std::make_shared<LayerNorm>(config.hidden_size, config.layer_norm_eps));
  }

  /// `pooled` is the last layer's states at every position, [B, L, hidden_size]: the caller picks one.
  CLIPTextOutput forward(const at::Tensor& input_ids, int64_t clip_skip) const {
    CLIPTextOutput out;
    at::Tensor hidden_states = embeddings_->forward(input_ids);
    auto layers_left = static_cast<int64_t>(encoder_->layers->size());
    for (const auto& layer : *encoder_->layers) {
      if (layers_left-- == clip_skip + 1) out.penultimate_hidden_state = hidden_states;
      hidden_states = gradient_checkpointing
                          ? checkpointed({hidden_states}, [&layer = *layer](const auto& in) { return layer.forward(in[0]); })
                          : layer->forward(hidden_states);
      if (layers_left == clip_skip) out.last_hidden_state = final_layer_norm_->forward(hidden_states);
    }
    out.pooled = clip_skip == 0 ? out.last_hidden_state : final_layer_norm_->forward(hidden_states);
    return out;
  }

  bool gradient_checkpointing = false;

 private:
  std::shared_ptr<Embeddings> embeddings_;
  std::shared_ptr<Encoder> encoder_;
  std::shared_ptr<LayerNorm> final_layer_norm_;
};

CLIPTextModel::CLIPTextModel(const CLIPTextConfig& config) : config_(config) {
  check(config);
  text_model_ = register_module("text_model", std::make_shared<CLIPTextTransformer>(config));
  if (config.with_projection) {
    text_projection_ = register_module(
        "text_projection", std::make_shared<Linear>(config.hidden_size, config.projection_dim, /*with_bias=*/false));
  }
}

void CLIPTextModel::enable_gradient_checkpointing() { text_model_->gradient_checkpointing = true; }

CLIPTextOutput CLIPTextModel::forward(const at::Tensor& input_ids, int64_t clip_skip) const {
  LORASHARD_CHECK(input_ids.dim() == 2 && input_ids.size(1) <= config_.max_position_embeddings,
                  "text encoder: {} input ids for {} positions", input_ids.size(-1), config_.max_position_embeddings);
  LORASHARD_CHECK(clip_skip >= 0 && clip_skip < config_.num_hidden_layers, "text encoder: clip_skip {} of {} layers", clip_skip,
                  config_.num_hidden_layers);
  CLIPTextOutput out = text_model_->forward(input_ids, clip_skip);
  // Configs from before transformers' correction say eos_token_id 2, and mean the highest id, which is <|endoftext|>.
  const at::Tensor eos =
      config_.eos_token_id == 2 ? input_ids.argmax(-1) : (input_ids == config_.eos_token_id).to(at::kInt).argmax(-1);
  out.pooled = out.pooled.index({at::arange(input_ids.size(0), input_ids.options()), eos});
  if (text_projection_) out.pooled = text_projection_->forward(out.pooled);
  return out;
}

StateDict normalise_text_encoder_keys(const StateDict& state) {
  StateDict out;
  for (const auto& [key, tensor] : state) {
    const std::string_view name = key;
    if (name.ends_with("position_ids")) continue;  // a buffer of older files, 0, 1, 2, ...
    const bool named = name.starts_with("text_model.") || name.starts_with("text_projection.");
    out.emplace(named ? key : "text_model." + key, tensor);
  }
  return out;
}

}  // namespace lorashard
