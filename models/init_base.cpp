// lorashard init-base: a base model with random weights in diffusers layout, for trials, tests and benchmarks.
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/philox.h"
#include "models/base_configs.h"
#include "models/clip_vocabulary.h"
#include "models/safetensors.h"
#include "models/stable_diffusion.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

/// The same shape with few channels. 8 norm groups: with 32 on so few channels the gradients are ill conditioned, and
/// two correct programs differ by 5e-3 instead of 1e-6.
BaseConfigs shrink(BaseConfigs preset) {
  preset.unet.sample_size = 8;
  preset.unet.block_out_channels = {32, 64, 128, 128};
  preset.unet.cross_attention_dim = 64;
  preset.unet.norm_num_groups = 8;
  const bool has_list = preset.unet.attention_head_dim.front() != preset.unet.attention_head_dim.back();
  preset.unet.attention_head_dim = has_list ? std::vector<int64_t>{2, 4, 8, 8} : std::vector<int64_t>{4, 4, 4, 4};
  preset.vae.block_out_channels = {16, 32, 64, 64};
  preset.vae.norm_num_groups = 8;
  preset.text_encoder.hidden_size = 64;
  preset.text_encoder.intermediate_size = 256;
  preset.text_encoder.projection_dim = 64;
  preset.text_encoder.num_hidden_layers = preset.text_encoder.num_hidden_layers == 23 ? 5 : 4;
  preset.text_encoder.num_attention_heads = 4;
  return preset;
}

BaseConfigs shrink_sdxl(BaseConfigs preset) {
  preset = shrink(preset);
  preset.unet.block_out_channels = {32, 64, 128};
  preset.unet.attention_head_dim = {2, 4, 8};
  preset.unet.transformer_layers_per_block = {1, 2, 3};
  preset.unet.addition_time_embed_dim = 16;
  CLIPTextConfig& second = *preset.text_encoder_2;
  second.hidden_size = 128;
  second.intermediate_size = 512;
  second.projection_dim = 96;
  second.num_hidden_layers = 5;
  second.num_attention_heads = 4;
  preset.unet.cross_attention_dim = preset.text_encoder.hidden_size + second.hidden_size;
  preset.unet.projection_class_embeddings_input_dim = second.projection_dim + 6 * preset.unet.addition_time_embed_dim;
  return preset;
}

BaseConfigs find_preset(const std::string& name) {
  if (name == "sd15") return sd15_configs();
  if (name == "sd21") return sd21_configs();
  if (name == "sdxl") return sdxl_configs();
  if (name == "tiny-sd15") return shrink(sd15_configs());
  if (name == "tiny-sd21") return shrink(sd21_configs());
  if (name == "tiny-sdxl") return shrink_sdxl(sdxl_configs());
  throw Error(ErrorKind::usage, fmt::format("making a base model: unknown preset '{}'", name),
              "the presets are tiny-sd15, tiny-sd21, tiny-sdxl, sd15, sd21 and sdxl");
}

std::span<float> values(const at::Tensor& tensor) {
  return {tensor.mutable_data_ptr<float>(), static_cast<size_t>(tensor.numel())};
}

/// Uniform in [-bound, bound): four values of 24 random bits from each Philox block.
void fill_uniform(std::span<float> out, double bound, uint64_t seed, uint64_t slot) {
  for (size_t i = 0; i < out.size(); i += 4) {
    const auto block = philox(seed, slot, Purpose::base_init, static_cast<uint32_t>(i / 4));
    for (size_t j = 0; j < std::min<size_t>(4, out.size() - i); ++j) {
      out[i + j] = static_cast<float>(bound * ((block[j] >> 8) * 0x1p-23 - 1.0));
    }
  }
}

/// PyTorch's default initialisation, drawn from Philox: the same bytes everywhere. `slot` counts tensors.
class Initialiser {
 public:
  explicit Initialiser(uint64_t seed) : seed_(seed) {}

  void fill(const torch::nn::Module& model) {
    for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false)) {
      const torch::nn::Module* module = item.value().get();
      if (const auto* linear = dynamic_cast<const Linear*>(module)) {
        fill_affine(linear->weight, linear->bias);
      } else if (const auto* conv = dynamic_cast<const Conv2d*>(module)) {
        fill_affine(conv->weight, conv->bias);
      } else if (const auto* group_norm = dynamic_cast<const GroupNorm*>(module)) {
        fill_norm(group_norm->weight, group_norm->bias);
      } else if (const auto* layer_norm = dynamic_cast<const LayerNorm*>(module)) {
        fill_norm(layer_norm->weight, layer_norm->bias);
      } else if (const auto* embedding = dynamic_cast<const Embedding*>(module)) {
        fill_normal(values(embedding->weight), seed_, slot_++, Purpose::base_init);
        for (float& value : values(embedding->weight)) value *= 0.02f;
      } else {
        LORASHARD_CHECK(module->parameters(/*recurse=*/false).empty(), "no initialisation for '{}'", item.key());
      }
    }
  }

 private:
  /// kaiming_uniform_(a = sqrt(5)) and its bias: both uniform within 1 / sqrt(fan_in).
  void fill_affine(const at::Tensor& weight, const at::Tensor& bias) {
    const double bound = 1.0 / std::sqrt(static_cast<double>(weight.numel() / weight.size(0)));
    fill_uniform(values(weight), bound, seed_, slot_++);
    if (bias.defined()) fill_uniform(values(bias), bound, seed_, slot_++);
  }
  void fill_norm(const at::Tensor& weight, const at::Tensor& bias) {
    std::ranges::fill(values(weight), 1.0f);
    std::ranges::fill(values(bias), 0.0f);
    slot_ += 2;
  }

  uint64_t seed_, slot_ = 0;
};

/// One component's folder: its config and its weights.
void write_component(const fs::path& folder, const char* stem, const std::string& config,
                     const torch::nn::Module& model) {
  fs::create_directory(folder);
  write_durably(folder / "config.json", config);
  StateDict state;
  for (const auto& parameter : model.named_parameters()) state.emplace(parameter.key(), parameter.value());
  write_safetensors(folder / fmt::format("{}.safetensors", stem), state, {{"format", "pt"}});
}

std::string model_index_json(bool is_sdxl) {
  const auto none = nlohmann::json::array({nullptr, nullptr});
  const auto part = [](const char* library, const char* name) { return nlohmann::json::array({library, name}); };
  nlohmann::json json = {{"_class_name", is_sdxl ? "StableDiffusionXLPipeline" : "StableDiffusionPipeline"},
                         {"_diffusers_version", "0.42.1"},
                         {"feature_extractor", none},
                         {"image_encoder", none},
                         {"scheduler", part("diffusers", is_sdxl ? "EulerDiscreteScheduler" : "PNDMScheduler")},
                         {"text_encoder", part("transformers", "CLIPTextModel")},
                         {"tokenizer", part("transformers", "CLIPTokenizer")},
                         {"unet", part("diffusers", "UNet2DConditionModel")},
                         {"vae", part("diffusers", "AutoencoderKL")}};
  if (is_sdxl) {
    json["force_zeros_for_empty_prompt"] = true;
    json["text_encoder_2"] = part("transformers", "CLIPTextModelWithProjection");
    json["tokenizer_2"] = part("transformers", "CLIPTokenizer");
  } else {
    json["requires_safety_checker"] = false;
    json["safety_checker"] = none;
  }
  return json.dump(2) + "\n";
}

void write_tokenizer(const fs::path& folder, const ClipVocabulary& vocabulary, const std::string& pad_token) {
  fs::create_directory(folder);
  write_durably(folder / "vocab.json", vocab_json(vocabulary));
  write_durably(folder / "merges.txt", merges_txt(vocabulary));
  write_durably(folder / "tokenizer_config.json", tokenizer_config_json(pad_token));
  write_durably(folder / "special_tokens_map.json", special_tokens_map_json(pad_token));
}

void write_base(const fs::path& folder, BaseConfigs preset, uint64_t seed, const ClipVocabulary& vocabulary) {
  for (CLIPTextConfig* config : {&preset.text_encoder, preset.is_sdxl() ? &*preset.text_encoder_2 : nullptr}) {
    if (!config) continue;
    config->vocab_size = static_cast<int64_t>(vocabulary.tokens.size());
    config->eos_token_id = config->vocab_size - 1;
  }
  // One component after the other: a full-size UNet alone is 3.4 GB.
  Initialiser initialiser(seed);
  {
    const UNet2DConditionModel unet(preset.unet);
    initialiser.fill(unet);
    write_component(folder / "unet", "diffusion_pytorch_model", to_json(preset.unet), unet);
  }
  {
    const AutoencoderKL vae(preset.vae);
    initialiser.fill(vae);
    write_component(folder / "vae", "diffusion_pytorch_model", to_json(preset.vae), vae);
  }
  const auto write_text_encoder = [&](const char* name, const CLIPTextConfig& config) {
    const CLIPTextModel text_encoder(config);
    initialiser.fill(text_encoder);
    write_component(folder / name, "model", to_json(config), text_encoder);
  };
  write_text_encoder("text_encoder", preset.text_encoder);
  write_tokenizer(folder / "tokenizer", vocabulary, preset.pad_token);
  if (preset.is_sdxl()) {
    write_text_encoder("text_encoder_2", *preset.text_encoder_2);
    write_tokenizer(folder / "tokenizer_2", vocabulary, "!");
  }
  fs::create_directory(folder / "scheduler");
  write_durably(folder / "scheduler" / "scheduler_config.json", to_json(preset.scheduler, preset.is_sdxl()));
  write_durably(folder / "model_index.json", model_index_json(preset.is_sdxl()));
}

}  // namespace

void init_base(const std::string& preset_name, const fs::path& out, uint64_t seed, const fs::path& vocabulary_file) {
  const BaseConfigs preset = find_preset(preset_name);
  const ClipVocabulary vocabulary = vocabulary_file.empty() ? byte_vocabulary() : read_clip_vocabulary(vocabulary_file);
  // "out/" and "out" are one folder; the temporary one must stand beside it.
  fs::path target = fs::absolute(out).lexically_normal();
  if (target.filename().empty()) target = target.parent_path();
  const std::string doing = fmt::format("making base model '{}'", out.string());
  if (fs::exists(target) && (!fs::is_directory(target) || !fs::is_empty(target))) {
    throw Error(ErrorKind::usage, doing + ": it exists and isn't an empty folder",
                "give a new folder, or remove it first");
  }
  const fs::path temporary = target.string() + fmt::format(".tmp-{}", ::getpid());
  try {
    fs::create_directories(temporary);
    write_base(temporary, preset, seed, vocabulary);
    for (const auto& entry : fs::recursive_directory_iterator(temporary)) {
      if (entry.is_directory()) fsync_folder(entry.path());
    }
    fsync_folder(temporary);
    fs::rename(temporary, target);
    fsync_folder(target.parent_path());
  } catch (const fs::filesystem_error& error) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw Error(ErrorKind::io, fmt::format("{}: {}", doing, error.what()));
  } catch (...) {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
    throw;
  }
}

}  // namespace lorashard
