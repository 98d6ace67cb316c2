#include "models/unet_2d_condition.h"

#include <ATen/ATen.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "dist/error.h"
#include "models/embeddings.h"
#include "models/unet_2d_blocks.h"

namespace lorashard {
namespace {

/// Whether the block `type` names has attention. Throws Error(bad_data) for a type other than `plain` and `cross_attn`.
bool with_attention(const std::string& type, const std::string& plain, const std::string& cross_attn) {
  if (type == cross_attn) return true;
  if (type == plain) return false;
  throw Error(ErrorKind::bad_data, fmt::format("building the UNet: expected blocks of type '{}' or '{}', found '{}'",
                                               plain, cross_attn, type));
}

void check(const UNet2DConditionConfig& config) {
  const size_t blocks = config.block_out_channels.size();
  if (!config.addition_embed_type.empty() && config.addition_embed_type != "text_time")
    throw Error(ErrorKind::bad_data,
                fmt::format("building the UNet: expected addition_embed_type 'text_time' or none, found '{}'",
                            config.addition_embed_type));
  if (blocks == 0 || config.down_block_types.size() != blocks || config.up_block_types.size() != blocks ||
      config.attention_head_dim.size() != blocks || config.transformer_layers_per_block.size() != blocks)
    throw Error(ErrorKind::bad_data,
                fmt::format("building the UNet: expected as many down_block_types ({}), up_block_types ({}), "
                            "attention_head_dim ({}) and transformer_layers_per_block ({}) as block_out_channels ({})",
                            config.down_block_types.size(), config.up_block_types.size(),
                            config.attention_head_dim.size(), config.transformer_layers_per_block.size(), blocks));
  for (size_t i = 0; i < blocks; ++i) {
    const int64_t channels = config.block_out_channels[i];
    for (const int64_t divisor : {config.attention_head_dim[i], config.norm_num_groups})
      if (divisor <= 0 || channels <= 0 || channels % divisor != 0)
        throw Error(ErrorKind::bad_data,
                    fmt::format("building the UNet: expected block_out_channels[{}] = {} to be a multiple of "
                                "attention_head_dim (the number of heads) {} and of norm_num_groups {}",
                                i, channels, config.attention_head_dim[i], config.norm_num_groups));
  }
}

UNetBlockOptions block_options(const UNet2DConditionConfig& config, size_t block) {
  UNetBlockOptions options;
  options.temb_channels = 4 * config.block_out_channels[0];
  options.num_layers = config.layers_per_block;
  options.resnet_eps = config.norm_eps;
  options.out_channels = config.block_out_channels[block];
  options.transformer = {.heads = config.attention_head_dim[block],
                         .channels = options.out_channels,
                         .num_layers = config.transformer_layers_per_block[block],
                         .cross_attention_dim = config.cross_attention_dim,
                         .norm_num_groups = config.norm_num_groups,
                         .use_linear_projection = config.use_linear_projection};
  return options;
}

}  // namespace

struct UNet2DConditionModel::Parts {
  std::shared_ptr<Conv2d> conv_in, conv_out;
  std::shared_ptr<TimestepEmbedding> time_embedding;
  std::shared_ptr<TimestepEmbedding> add_embedding;  // null but for SDXL
  std::shared_ptr<ModuleList<UNetDownBlock2D>> down_blocks;
  std::shared_ptr<ModuleList<UNetUpBlock2D>> up_blocks;
  std::shared_ptr<UNetMidBlock2DCrossAttn> mid_block;
  std::shared_ptr<GroupNorm> conv_norm_out;
};

// Registered in diffusers' order: up_blocks before mid_block.
UNet2DConditionModel::UNet2DConditionModel(const UNet2DConditionConfig& config)
    : config_(config), parts_(std::make_unique<Parts>()) {
  check(config);
  const auto& channels = config.block_out_channels;
  const size_t last = channels.size() - 1;
  parts_->conv_in = register_module("conv_in", std::make_shared<Conv2d>(config.in_channels, channels[0], 3, 1, 1));
  parts_->time_embedding =
      register_module("time_embedding", std::make_shared<TimestepEmbedding>(channels[0], 4 * channels[0]));
  if (!config.addition_embed_type.empty())
    parts_->add_embedding =
        register_module("add_embedding", std::make_shared<TimestepEmbedding>(
                                             config.projection_class_embeddings_input_dim, 4 * channels[0]));

  parts_->down_blocks = register_module("down_blocks", std::make_shared<ModuleList<UNetDownBlock2D>>());
  for (size_t i = 0; i <= last; ++i) {
    UNetBlockOptions options = block_options(config, i);
    options.in_channels = channels[i == 0 ? 0 : i - 1];
    options.with_attention = with_attention(config.down_block_types[i], "DownBlock2D", "CrossAttnDownBlock2D");
    options.with_resampling = i != last;
    parts_->down_blocks->append(std::make_shared<UNetDownBlock2D>(options));
  }

  parts_->up_blocks = register_module("up_blocks", std::make_shared<ModuleList<UNetUpBlock2D>>());
  for (size_t i = 0; i <= last; ++i) {
    UNetBlockOptions options = block_options(config, last - i);
    options.prev_output_channel = channels[i == 0 ? last : last - i + 1];
    options.in_channels = channels[i == last ? 0 : last - i - 1];
    options.num_layers = config.layers_per_block + 1;
    options.with_attention = with_attention(config.up_block_types[i], "UpBlock2D", "CrossAttnUpBlock2D");
    options.with_resampling = i != last;
    parts_->up_blocks->append(std::make_shared<UNetUpBlock2D>(options));
  }

  UNetBlockOptions mid = block_options(config, last);
  mid.in_channels = channels[last];
  mid.num_layers = 1;
  parts_->mid_block = register_module("mid_block", std::make_shared<UNetMidBlock2DCrossAttn>(mid));

  parts_->conv_norm_out = register_module(
      "conv_norm_out", std::make_shared<GroupNorm>(config.norm_num_groups, channels[0], config.norm_eps));
  parts_->conv_out = register_module("conv_out", std::make_shared<Conv2d>(channels[0], config.out_channels, 3, 1, 1));
}

UNet2DConditionModel::~UNet2DConditionModel() = default;

void UNet2DConditionModel::enable_gradient_checkpointing() {
  for (const auto& module : modules(/*include_self=*/false)) {
    if (auto* resnet = dynamic_cast<ResnetBlock2D*>(module.get())) resnet->enable_gradient_checkpointing();
    if (auto* transformer = dynamic_cast<Transformer2DModel*>(module.get())) transformer->enable_gradient_checkpointing();
  }
}

at::Tensor UNet2DConditionModel::time_embedding(const at::Tensor& timesteps, at::ScalarType dtype,
                                                const AddedConditions& added) const {
  const auto sinusoids = [&](const at::Tensor& values, int64_t dim) {
    return get_timestep_embedding(values, dim, config_.flip_sin_to_cos, static_cast<double>(config_.freq_shift));
  };
  const at::Tensor emb =
      parts_->time_embedding->forward(sinusoids(timesteps, config_.block_out_channels[0]).to(dtype));
  if (!parts_->add_embedding) return emb;
  // diffusers' get_aug_embed() for "text_time".
  const at::Tensor time_embeds =
      sinusoids(added.time_ids.flatten(), config_.addition_time_embed_dim).reshape({added.time_ids.size(0), -1});
  const at::Tensor add_embeds = at::cat({added.text_embeds.to(dtype), time_embeds.to(dtype)}, -1);
  LORASHARD_CHECK(add_embeds.size(-1) == config_.projection_class_embeddings_input_dim,
                  "expected text_embeds and {} sinusoids of each time id to make {} values, found {}",
                  config_.addition_time_embed_dim, config_.projection_class_embeddings_input_dim, add_embeds.size(-1));
  return emb + parts_->add_embedding->forward(add_embeds);
}

at::Tensor UNet2DConditionModel::forward(const at::Tensor& sample, const at::Tensor& timesteps,
                                         const at::Tensor& encoder_hidden_states, const AddedConditions& added) const {
  const int64_t multiple = int64_t{1} << (config_.block_out_channels.size() - 1);
  LORASHARD_CHECK(sample.dim() == 4 && sample.size(2) % multiple == 0 && sample.size(3) % multiple == 0,
                  "expected latents [B, C, h, w] with h and w multiples of {}, found {}", multiple,
                  fmt::join(sample.sizes(), "x"));
  const bool wants_added = parts_->add_embedding != nullptr;
  LORASHARD_CHECK(added.text_embeds.defined() == wants_added && added.time_ids.defined() == wants_added,
                  "expected text_embeds and time_ids {} addition_embed_type '{}'", wants_added ? "for" : "only with an",
                  config_.addition_embed_type);

  // 1. time
  const at::Tensor silu_temb = at::silu(time_embedding(timesteps, sample.scalar_type(), added));

  // 2. pre-process
  // Channels last throughout: the transformers' tokens are then views of the image, and patches of a convolution are
  // copied whole.
  at::Tensor hidden_states = parts_->conv_in->forward(sample.contiguous(at::MemoryFormat::ChannelsLast));

  // 3. down
  std::vector<at::Tensor> res_samples = {hidden_states};
  for (const auto& block : *parts_->down_blocks)
    hidden_states = block->forward(hidden_states, silu_temb, encoder_hidden_states, res_samples);

  // 4. mid
  hidden_states = parts_->mid_block->forward(hidden_states, silu_temb, encoder_hidden_states);

  // 5. up
  for (const auto& block : *parts_->up_blocks)
    hidden_states = block->forward(hidden_states, silu_temb, encoder_hidden_states, res_samples);

  // 6. post-process
  return parts_->conv_out->forward(parts_->conv_norm_out->forward_silu(hidden_states));
}

}  // namespace lorashard
