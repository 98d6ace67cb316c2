#include "models/autoencoder_kl.h"

#include <ATen/ATen.h>
#include <fmt/core.h>

#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "dist/error.h"
#include "models/resnet.h"

namespace lorashard {
namespace {

constexpr double kNormEps = 1e-6;  // of every norm of the VAE, whatever its config says

/// The single-head attention of the middle block, over the picture's positions.
class MidAttention : public torch::nn::Module {
 public:
  MidAttention(int64_t channels, int64_t groups) {
    group_norm_ = register_module("group_norm", std::make_shared<GroupNorm>(groups, channels, kNormEps));
    to_q_ = register_module("to_q", std::make_shared<Linear>(channels, channels));
    to_k_ = register_module("to_k", std::make_shared<Linear>(channels, channels));
    to_v_ = register_module("to_v", std::make_shared<Linear>(channels, channels));
    to_out_ = register_module("to_out", std::make_shared<ModuleList<Linear>>());
    to_out_->append(std::make_shared<Linear>(channels, channels));
  }

  at::Tensor forward(const at::Tensor& x) const {
    const at::Tensor tokens = group_norm_->forward(x).flatten(2).transpose(1, 2);
    // sdpa wants [B, heads, positions, channels].
    const at::Tensor y = at::scaled_dot_product_attention(
        to_q_->forward(tokens).unsqueeze(1), to_k_->forward(tokens).unsqueeze(1), to_v_->forward(tokens).unsqueeze(1));
    return x + (*to_out_)[0].forward(y.squeeze(1)).transpose(1, 2).view(x.sizes());
  }

 private:
  std::shared_ptr<GroupNorm> group_norm_;
  std::shared_ptr<Linear> to_q_, to_k_, to_v_;
  std::shared_ptr<ModuleList<Linear>> to_out_;
};

class MidBlock : public torch::nn::Module {
 public:
  MidBlock(int64_t channels, int64_t groups) {
    attentions_ = register_module("attentions", std::make_shared<ModuleList<MidAttention>>());
    attentions_->append(std::make_shared<MidAttention>(channels, groups));
    resnets_ = register_module("resnets", std::make_shared<ModuleList<ResnetBlock2D>>());
    for (int i = 0; i < 2; ++i) {
      resnets_->append(std::make_shared<ResnetBlock2D>(channels, channels, 0, groups, kNormEps));
    }
  }

  at::Tensor forward(const at::Tensor& x) const {
    return (*resnets_)[1].forward((*attentions_)[0].forward((*resnets_)[0].forward(x)));
  }

 private:
  std::shared_ptr<ModuleList<MidAttention>> attentions_;
  std::shared_ptr<ModuleList<ResnetBlock2D>> resnets_;
};

/// DownEncoderBlock2D (Sampler = Downsample2D) and UpDecoderBlock2D (Upsample2D): resnets, then the sampler unless
/// last.
template <class Sampler>
class Block : public torch::nn::Module {
 public:
  Block(int64_t in_channels, int64_t out_channels, int64_t num_layers, int64_t groups, const char* samplers_name,
        std::shared_ptr<Sampler> sampler) {
    resnets_ = register_module("resnets", std::make_shared<ModuleList<ResnetBlock2D>>());
    for (int64_t i = 0; i < num_layers; ++i) {
      resnets_->append(
          std::make_shared<ResnetBlock2D>(i == 0 ? in_channels : out_channels, out_channels, 0, groups, kNormEps));
    }
    if (!sampler) return;
    samplers_ = register_module(samplers_name, std::make_shared<ModuleList<Sampler>>());
    samplers_->append(std::move(sampler));
  }

  at::Tensor forward(at::Tensor x) const {
    for (const auto& resnet : *resnets_) x = resnet->forward(x);
    return samplers_ ? (*samplers_)[0].forward(x) : x;
  }

 private:
  std::shared_ptr<ModuleList<ResnetBlock2D>> resnets_;
  std::shared_ptr<ModuleList<Sampler>> samplers_;
};

using DownBlock = Block<Downsample2D>;
using UpBlock = Block<Upsample2D>;

}  // namespace

class VaeEncoder : public torch::nn::Module {
 public:
  explicit VaeEncoder(const AutoencoderKLConfig& config) {
    const auto& channels = config.block_out_channels;
    conv_in_ = register_module("conv_in", std::make_shared<Conv2d>(config.in_channels, channels.front(), 3, 1, 1));
    down_blocks_ = register_module("down_blocks", std::make_shared<ModuleList<DownBlock>>());
    for (size_t i = 0; i < channels.size(); ++i) {
      const bool last = i + 1 == channels.size();
      down_blocks_->append(std::make_shared<DownBlock>(
          channels[i == 0 ? 0 : i - 1], channels[i], config.layers_per_block, config.norm_num_groups, "downsamplers",
          last ? nullptr : std::make_shared<Downsample2D>(channels[i], /*padding=*/0)));
    }
    mid_block_ = register_module("mid_block", std::make_shared<MidBlock>(channels.back(), config.norm_num_groups));
    conv_norm_out_ = register_module("conv_norm_out",
                                     std::make_shared<GroupNorm>(config.norm_num_groups, channels.back(), kNormEps));
    conv_out_ =
        register_module("conv_out", std::make_shared<Conv2d>(channels.back(), 2 * config.latent_channels, 3, 1, 1));
  }

  at::Tensor forward(const at::Tensor& pixel_values) const {
    at::Tensor x = conv_in_->forward(pixel_values);
    for (const auto& block : *down_blocks_) x = block->forward(x);
    return conv_out_->forward(at::silu(conv_norm_out_->forward(mid_block_->forward(x))));
  }

 private:
  std::shared_ptr<Conv2d> conv_in_, conv_out_;
  std::shared_ptr<ModuleList<DownBlock>> down_blocks_;
  std::shared_ptr<MidBlock> mid_block_;
  std::shared_ptr<GroupNorm> conv_norm_out_;
};

class VaeDecoder : public torch::nn::Module {
 public:
  explicit VaeDecoder(const AutoencoderKLConfig& config) {
    const auto& channels = config.block_out_channels;
    conv_in_ = register_module("conv_in", std::make_shared<Conv2d>(config.latent_channels, channels.back(), 3, 1, 1));
    up_blocks_ = register_module("up_blocks", std::make_shared<ModuleList<UpBlock>>());
    int64_t in_channels = channels.back();
    for (size_t i = channels.size(); i-- > 0;) {
      up_blocks_->append(std::make_shared<UpBlock>(in_channels, channels[i], config.layers_per_block + 1,
                                                   config.norm_num_groups, "upsamplers",
                                                   i == 0 ? nullptr : std::make_shared<Upsample2D>(channels[i])));
      in_channels = channels[i];
    }
    mid_block_ = register_module("mid_block", std::make_shared<MidBlock>(channels.back(), config.norm_num_groups));
    conv_norm_out_ = register_module("conv_norm_out",
                                     std::make_shared<GroupNorm>(config.norm_num_groups, channels.front(), kNormEps));
    conv_out_ = register_module("conv_out", std::make_shared<Conv2d>(channels.front(), config.out_channels, 3, 1, 1));
  }

  at::Tensor forward(const at::Tensor& latents) const {
    at::Tensor x = mid_block_->forward(conv_in_->forward(latents));
    for (const auto& block : *up_blocks_) x = block->forward(x);
    return conv_out_->forward(at::silu(conv_norm_out_->forward(x)));
  }

 private:
  std::shared_ptr<Conv2d> conv_in_, conv_out_;
  std::shared_ptr<ModuleList<UpBlock>> up_blocks_;
  std::shared_ptr<MidBlock> mid_block_;
  std::shared_ptr<GroupNorm> conv_norm_out_;
};

AutoencoderKL::AutoencoderKL(const AutoencoderKLConfig& config) : config_(config) {
  for (const int64_t channels : config.block_out_channels) {
    if (config.norm_num_groups < 1 || channels % config.norm_num_groups != 0) {
      throw Error(ErrorKind::bad_data, fmt::format("VAE: expected norm_num_groups to divide each of "
                                                   "block_out_channels; found {} and {}",
                                                   config.norm_num_groups, channels));
    }
  }
  if (config.block_out_channels.empty()) throw Error(ErrorKind::bad_data, "VAE: block_out_channels is empty");
  const int64_t latent_channels = config.latent_channels;
  encoder_ = register_module("encoder", std::make_shared<VaeEncoder>(config));
  decoder_ = register_module("decoder", std::make_shared<VaeDecoder>(config));
  quant_conv_ = register_module("quant_conv", std::make_shared<Conv2d>(2 * latent_channels, 2 * latent_channels, 1));
  post_quant_conv_ = register_module("post_quant_conv", std::make_shared<Conv2d>(latent_channels, latent_channels, 1));
}

at::Tensor AutoencoderKL::encode_moments(const at::Tensor& pixel_values) const {
  return quant_conv_->forward(encoder_->forward(pixel_values));
}

at::Tensor AutoencoderKL::decode(const at::Tensor& latents) const {
  return decoder_->forward(post_quant_conv_->forward(latents));
}

at::Tensor sample_latents(const at::Tensor& moments, const at::Tensor& vae_noise) {
  const auto parts = moments.chunk(2, 1);
  return parts[0] + at::clamp(parts[1], -30.0, 20.0).mul_(0.5).exp_() * vae_noise;
}

namespace {

at::Tensor by_channel(const std::vector<double>& values, const at::Tensor& like) {
  return at::tensor(values, like.options()).view({1, -1, 1, 1});
}

}  // namespace

at::Tensor scale_latents(const AutoencoderKLConfig& config, const at::Tensor& latents) {
  if (config.latents_mean.empty()) return latents * config.scaling_factor;
  return (latents - by_channel(config.latents_mean, latents)) * config.scaling_factor / by_channel(config.latents_std, latents);
}

at::Tensor unscale_latents(const AutoencoderKLConfig& config, const at::Tensor& latents) {
  if (config.latents_mean.empty()) return latents / config.scaling_factor;
  return latents * by_channel(config.latents_std, latents) / config.scaling_factor + by_channel(config.latents_mean, latents);
}

StateDict normalise_vae_keys(const StateDict& state) {
  constexpr std::array<std::pair<const char*, const char*>, 4> kNewNames = {
      {{"query", "to_q"}, {"key", "to_k"}, {"value", "to_v"}, {"proj_attn", "to_out.0"}}};
  constexpr std::string_view kAttention = ".attentions.0.";
  StateDict out;
  for (const auto& [old_key, old_tensor] : state) {
    std::string key = old_key;
    at::Tensor tensor = old_tensor;
    if (const size_t at = key.find(kAttention); at != std::string::npos) {
      const size_t begin = at + kAttention.size(), size = key.find('.', begin) - begin;
      for (const auto& [old_name, new_name] : kNewNames) {
        if (key.compare(begin, size, old_name) == 0) key.replace(begin, size, new_name);
      }
      // A file with both spellings keeps the old one, for load_state_dict() to refuse as unexpected.
      if (key != old_key && state.contains(key)) key = old_key;
      // Checkpoints in one file hold the projections as 1x1 convolutions.
      if (tensor.dim() == 4 && tensor.size(2) == 1 && tensor.size(3) == 1) tensor = tensor.squeeze(3).squeeze(2);
    }
    out.emplace(std::move(key), std::move(tensor));
  }
  return out;
}

}  // namespace lorashard
