#include "models/unet_2d_blocks.h"

#include <ATen/ATen.h>

namespace lorashard {
namespace {

std::shared_ptr<ResnetBlock2D> make_resnet(const UNetBlockOptions& options, int64_t in_channels) {
  return std::make_shared<ResnetBlock2D>(in_channels, options.out_channels, options.temb_channels,
                                         options.transformer.norm_num_groups, options.resnet_eps);
}

std::shared_ptr<Transformer2DModel> make_attention(const UNetBlockOptions& options) {
  Transformer2DOptions transformer = options.transformer;
  transformer.channels = options.out_channels;
  return std::make_shared<Transformer2DModel>(transformer);
}

}  // namespace

// In all blocks "attentions" is registered before "resnets", as in diffusers: the order of the LoRA parameters is the
// order of named_modules().

UNetDownBlock2D::UNetDownBlock2D(const UNetBlockOptions& options) {
  if (options.with_attention)
    attentions_ = register_module("attentions", std::make_shared<ModuleList<Transformer2DModel>>());
  resnets_ = register_module("resnets", std::make_shared<ModuleList<ResnetBlock2D>>());
  for (int64_t i = 0; i < options.num_layers; ++i) {
    resnets_->append(make_resnet(options, i == 0 ? options.in_channels : options.out_channels));
    if (attentions_) attentions_->append(make_attention(options));
  }
  if (!options.with_resampling) return;
  downsamplers_ = register_module("downsamplers", std::make_shared<ModuleList<Downsample2D>>());
  downsamplers_->append(std::make_shared<Downsample2D>(options.out_channels));
}

at::Tensor UNetDownBlock2D::forward(at::Tensor hidden_states, const at::Tensor& silu_temb,
                                    const at::Tensor& encoder_hidden_states,
                                    std::vector<at::Tensor>& res_samples) const {
  for (size_t i = 0; i < resnets_->size(); ++i) {
    hidden_states = (*resnets_)[i].forward(hidden_states, silu_temb);
    if (attentions_) hidden_states = (*attentions_)[i].forward(hidden_states, encoder_hidden_states);
    res_samples.push_back(hidden_states);
  }
  if (!downsamplers_) return hidden_states;
  hidden_states = (*downsamplers_)[0].forward(hidden_states);
  res_samples.push_back(hidden_states);
  return hidden_states;
}

UNetMidBlock2DCrossAttn::UNetMidBlock2DCrossAttn(const UNetBlockOptions& options) {
  attentions_ = register_module("attentions", std::make_shared<ModuleList<Transformer2DModel>>());
  resnets_ = register_module("resnets", std::make_shared<ModuleList<ResnetBlock2D>>());
  resnets_->append(make_resnet(options, options.in_channels));
  for (int64_t i = 0; i < options.num_layers; ++i) {
    attentions_->append(make_attention(options));
    resnets_->append(make_resnet(options, options.out_channels));
  }
}

at::Tensor UNetMidBlock2DCrossAttn::forward(at::Tensor hidden_states, const at::Tensor& silu_temb,
                                            const at::Tensor& encoder_hidden_states) const {
  hidden_states = (*resnets_)[0].forward(hidden_states, silu_temb);
  for (size_t i = 0; i < attentions_->size(); ++i) {
    hidden_states = (*attentions_)[i].forward(hidden_states, encoder_hidden_states);
    hidden_states = (*resnets_)[i + 1].forward(hidden_states, silu_temb);
  }
  return hidden_states;
}

UNetUpBlock2D::UNetUpBlock2D(const UNetBlockOptions& options) {
  if (options.with_attention)
    attentions_ = register_module("attentions", std::make_shared<ModuleList<Transformer2DModel>>());
  resnets_ = register_module("resnets", std::make_shared<ModuleList<ResnetBlock2D>>());
  for (int64_t i = 0; i < options.num_layers; ++i) {
    const int64_t skip_channels = i == options.num_layers - 1 ? options.in_channels : options.out_channels;
    const int64_t in_channels = i == 0 ? options.prev_output_channel : options.out_channels;
    resnets_->append(make_resnet(options, in_channels + skip_channels));
    if (attentions_) attentions_->append(make_attention(options));
  }
  if (!options.with_resampling) return;
  upsamplers_ = register_module("upsamplers", std::make_shared<ModuleList<Upsample2D>>());
  upsamplers_->append(std::make_shared<Upsample2D>(options.out_channels));
}

at::Tensor UNetUpBlock2D::forward(at::Tensor hidden_states, const at::Tensor& silu_temb,
                                  const at::Tensor& encoder_hidden_states, std::vector<at::Tensor>& res_samples) const {
  for (size_t i = 0; i < resnets_->size(); ++i) {
    hidden_states = at::cat({hidden_states, res_samples.back()}, 1);
    res_samples.pop_back();
    hidden_states = (*resnets_)[i].forward(hidden_states, silu_temb);
    if (attentions_) hidden_states = (*attentions_)[i].forward(hidden_states, encoder_hidden_states);
  }
  return upsamplers_ ? (*upsamplers_)[0].forward(hidden_states) : hidden_states;
}

}  // namespace lorashard
