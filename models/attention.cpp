#include "models/attention.h"

#include <ATen/ATen.h>

#include "models/checkpointed.h"
#include "models/geglu.h"
#include "models/small_attention.h"

namespace lorashard {

at::Tensor multi_head_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t heads) {
  if (is_small_attention(q, k, heads)) return small_attention(q, k, v, heads);
  const auto split = [heads](const at::Tensor& x) { return x.unflatten(-1, {heads, -1}).transpose(1, 2); };
  return at::scaled_dot_product_attention(split(q), split(k), split(v)).transpose(1, 2).flatten(2);
}

Attention::Attention(int64_t query_dim, int64_t cross_attention_dim, int64_t heads) : heads_(heads) {
  const int64_t key_dim = cross_attention_dim > 0 ? cross_attention_dim : query_dim;
  to_q_ = register_module("to_q", std::make_shared<Linear>(query_dim, query_dim, /*with_bias=*/false));
  to_k_ = register_module("to_k", std::make_shared<Linear>(key_dim, query_dim, /*with_bias=*/false));
  to_v_ = register_module("to_v", std::make_shared<Linear>(key_dim, query_dim, /*with_bias=*/false));
  to_out_ = register_module("to_out", std::make_shared<ModuleList<Linear>>());
  to_out_->append(std::make_shared<Linear>(query_dim, query_dim));
}

at::Tensor Attention::forward(const at::Tensor& hidden_states, const at::Tensor& encoder_hidden_states,
                              const at::Tensor& residual) const {
  const at::Tensor q = to_q_->forward(hidden_states);
  const at::Tensor k = to_k_->forward(encoder_hidden_states), v = to_v_->forward(encoder_hidden_states);
  return (*to_out_)[0].forward(multi_head_attention(q, k, v, heads_), residual);
}

FeedForward::FeedForward(int64_t dim) {
  // diffusers' ModuleList holds a GEGLU, a Dropout (nothing here) and a Linear.
  auto net = register_module("net", std::make_shared<torch::nn::Module>());
  auto geglu = net->register_module("0", std::make_shared<torch::nn::Module>());
  proj_ = geglu->register_module("proj", std::make_shared<Linear>(dim, 8 * dim));
  out_ = net->register_module("2", std::make_shared<Linear>(4 * dim, dim));
}

at::Tensor FeedForward::forward(const at::Tensor& hidden_states, const at::Tensor& residual) const {
  return out_->forward(geglu(proj_->forward(hidden_states)), residual);
}

BasicTransformerBlock::BasicTransformerBlock(int64_t dim, int64_t heads, int64_t cross_attention_dim) {
  norm1_ = register_module("norm1", std::make_shared<LayerNorm>(dim));
  attn1_ = register_module("attn1", std::make_shared<Attention>(dim, 0, heads));
  norm2_ = register_module("norm2", std::make_shared<LayerNorm>(dim));
  attn2_ = register_module("attn2", std::make_shared<Attention>(dim, cross_attention_dim, heads));
  norm3_ = register_module("norm3", std::make_shared<LayerNorm>(dim));
  ff_ = register_module("ff", std::make_shared<FeedForward>(dim));
}

at::Tensor BasicTransformerBlock::forward(const at::Tensor& x, const at::Tensor& text) const {
  // Where the text encoder is trained: the block's two gradients meet here, with gradient checkpointing or without.
  const at::Tensor encoder_hidden_states = at::alias(text);
  const at::Tensor normed = norm1_->forward(x);
  at::Tensor hidden_states = attn1_->forward(normed, normed, x);
  hidden_states = attn2_->forward(norm2_->forward(hidden_states), encoder_hidden_states, hidden_states);
  return ff_->forward(norm3_->forward(hidden_states), hidden_states);
}

Transformer2DModel::Transformer2DModel(const Transformer2DOptions& options) {
  const int64_t channels = options.channels;
  norm_ = register_module("norm", std::make_shared<GroupNorm>(options.norm_num_groups, channels, 1e-6));
  if (options.use_linear_projection)
    linear_in_ = register_module("proj_in", std::make_shared<Linear>(channels, channels));
  else
    conv_in_ = register_module("proj_in", std::make_shared<Conv2d>(channels, channels, 1));
  transformer_blocks_ = register_module("transformer_blocks", std::make_shared<ModuleList<BasicTransformerBlock>>());
  for (int64_t i = 0; i < options.num_layers; ++i)
    transformer_blocks_->append(
        std::make_shared<BasicTransformerBlock>(channels, options.heads, options.cross_attention_dim));
  if (options.use_linear_projection)
    linear_out_ = register_module("proj_out", std::make_shared<Linear>(channels, channels));
  else
    conv_out_ = register_module("proj_out", std::make_shared<Conv2d>(channels, channels, 1));
}

at::Tensor Transformer2DModel::forward(const at::Tensor& x, const at::Tensor& encoder_hidden_states) const {
  // Views, as long as the image is channels_last. A 1x1 convolution of the image is a linear layer of its tokens.
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const auto project = [&](const at::Tensor& tokens, const Linear* linear, const Conv2d* conv) {
    return linear ? linear->forward(tokens) : conv->forward_tokens(tokens);
  };
  const at::Tensor normed = norm_->forward(x).permute({0, 2, 3, 1}).reshape({batch, height * width, channels});
  at::Tensor hidden_states = project(normed, linear_in_.get(), conv_in_.get());
  for (const auto& block : *transformer_blocks_) {
    hidden_states = gradient_checkpointing_
                        ? checkpointed({hidden_states, encoder_hidden_states},
                                       [&block = *block](const auto& in) { return block.forward(in[0], in[1]); })
                        : block->forward(hidden_states, encoder_hidden_states);
  }
  hidden_states = project(hidden_states, linear_out_.get(), conv_out_.get());
  return hidden_states.view({batch, height, width, channels}).permute({0, 3, 1, 2}) + x;
}

}  // namespace lorashard
