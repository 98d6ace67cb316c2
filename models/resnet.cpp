#include "models/resnet.h"

#include <ATen/ATen.h>

#include "models/checkpointed.h"

namespace lorashard {

ResnetBlock2D::ResnetBlock2D(int64_t in_channels, int64_t out_channels, int64_t temb_channels, int64_t groups,
                             double eps) {
  norm1_ = register_module("norm1", std::make_shared<GroupNorm>(groups, in_channels, eps));
  conv1_ = register_module("conv1", std::make_shared<Conv2d>(in_channels, out_channels, 3, 1, 1));
  if (temb_channels > 0)
    time_emb_proj_ = register_module("time_emb_proj", std::make_shared<Linear>(temb_channels, out_channels));
  norm2_ = register_module("norm2", std::make_shared<GroupNorm>(groups, out_channels, eps));
  conv2_ = register_module("conv2", std::make_shared<Conv2d>(out_channels, out_channels, 3, 1, 1));
  if (in_channels != out_channels)
    conv_shortcut_ = register_module("conv_shortcut", std::make_shared<Conv2d>(in_channels, out_channels, 1));
}

at::Tensor ResnetBlock2D::forward(const at::Tensor& x, const at::Tensor& silu_temb) const {
  if (!gradient_checkpointing_) return run(x, silu_temb);
  return checkpointed({x, silu_temb}, [this](const auto& in) { return run(in[0], in[1]); });
}

at::Tensor ResnetBlock2D::run(const at::Tensor& input, const at::Tensor& silu_temb) const {
  // Gradients of the input meet here before they meet those of its other readers, with gradient checkpointing or without.
  const at::Tensor x = at::alias(input);
  at::Tensor hidden_states = conv1_->forward(norm1_->forward_silu(x));
  const at::Tensor shift = time_emb_proj_ ? time_emb_proj_->forward(silu_temb) : at::Tensor();
  hidden_states = conv2_->forward(norm2_->forward_silu(hidden_states, shift));
  return (conv_shortcut_ ? conv_shortcut_->forward(x) : x) + hidden_states;
}

Downsample2D::Downsample2D(int64_t channels, int64_t padding) : padding_(padding) {
  conv_ = register_module("conv", std::make_shared<Conv2d>(channels, channels, 3, 2, padding));
}

at::Tensor Downsample2D::forward(const at::Tensor& x) const {
  return conv_->forward(padding_ == 0 ? at::constant_pad_nd(x, {0, 1, 0, 1}, 0) : x);
}

Upsample2D::Upsample2D(int64_t channels) {
  conv_ = register_module("conv", std::make_shared<Conv2d>(channels, channels, 3, 1, 1));
}

at::Tensor Upsample2D::forward(const at::Tensor& x) const {
  return conv_->forward(at::upsample_nearest2d(x, {x.size(2) * 2, x.size(3) * 2}));
}

}  // namespace lorashard
