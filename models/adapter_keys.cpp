#include "models/adapter_keys.h"

#include <array>
#include <string_view>

namespace lorashard {
namespace {

struct Ending {
  std::string_view text, tensor, format;
};

constexpr std::array<Ending, 33> kEndings = {{
    {".lora_linear_layer.down.weight", "down", "diffusers"},
    {".lora_linear_layer.up.weight", "up", "diffusers"},
    {".lora.down.weight", "down", "diffusers"},
    {".lora.up.weight", "up", "diffusers"},
    {"_lora.down.weight", "down", "diffusers"},  // before 0.24: "attn1.processor.to_q_lora.down.weight"
    {"_lora.up.weight", "up", "diffusers"},
    {".lora_A.weight", "down", "peft"},
    {".lora_B.weight", "up", "peft"},
    {".lora_A.default.weight", "down", "peft"},
    {".lora_B.default.weight", "up", "peft"},
    {".lora_magnitude_vector", "magnitude", "peft"},
    {".lora_magnitude_vector.weight", "magnitude", "peft"},
    {".lora_magnitude_vector.default.weight", "magnitude", "peft"},
    {".lora_down.weight", "down", "kohya"},
    {".lora_up.weight", "up", "kohya"},
    {".alpha", "alpha", "kohya"},
    {".lora_mid.weight", "mid", "lycoris"},
    {".dora_scale", "dora_scale", "lycoris"},
    {".hada_w1_a", "hada_w1_a", "lycoris"},
    {".hada_w1_b", "hada_w1_b", "lycoris"},
    {".hada_w2_a", "hada_w2_a", "lycoris"},
    {".hada_w2_b", "hada_w2_b", "lycoris"},
    {".hada_t1", "hada_t1", "lycoris"},
    {".hada_t2", "hada_t2", "lycoris"},
    {".lokr_w1", "lokr_w1", "lycoris"},
    {".lokr_w1_a", "lokr_w1_a", "lycoris"},
    {".lokr_w1_b", "lokr_w1_b", "lycoris"},
    {".lokr_w2", "lokr_w2", "lycoris"},
    {".lokr_w2_a", "lokr_w2_a", "lycoris"},
    {".lokr_w2_b", "lokr_w2_b", "lycoris"},
    {".lokr_t2", "lokr_t2", "lycoris"},
    {".diff", "diff", "lycoris"},
    {".diff_b", "diff_b", "lycoris"},
}};

struct Beginning {
  std::string_view text, component;
};

// Longer ones first where one begins with another. PEFT's and LyCORIS' own say nothing of the component.
constexpr std::array<Beginning, 22> kBeginnings = {{
    {"base_model.model.", ""},
    {"lycoris_", ""},
    {"unet.unet.", "unet"},  // DreamBooth scripts of diffusers 0.23 and 0.24
    {"unet.", "unet"},
    {"lora_unet_", "unet"},
    {"lora_unet.", "unet"},
    {"model.diffusion_model.", "unet"},
    {"diffusion_model.", "unet"},
    {"text_encoder_2.text_encoder_2.", "text_encoder_2"},
    {"text_encoder_2.", "text_encoder_2"},
    {"text_encoder.text_encoder.", "text_encoder"},
    {"text_encoder.", "text_encoder"},
    {"text_encoders.clip_l.transformer.", "text_encoder"},
    {"text_encoders.clip_g.transformer.", "text_encoder_2"},
    {"clip_l.", "text_encoder"},
    {"clip_g.", "text_encoder_2"},
    {"lora_te1_", "text_encoder"},
    {"lora_te1.", "text_encoder"},
    {"lora_te2_", "text_encoder_2"},
    {"lora_te2.", "text_encoder_2"},
    {"lora_te_", "text_encoder"},
    {"lora_te.", "text_encoder"},
}};

void replace_end(std::string& text, std::string_view from, std::string_view to) {
  if (text.ends_with(from)) text.replace(text.size() - from.size(), from.size(), to);
}

/// diffusers' names before 0.24: attention processors in the UNet, its words in text encoders.
void modernise(AdapterKey& key, std::string_view ending) {
  constexpr std::string_view kProcessor = ".processor.";
  if (const size_t at = key.module.find(kProcessor); at != std::string::npos)
    key.module.replace(at, kProcessor.size(), ".");
  const bool text_encoder = key.module.find(".self_attn.") != std::string::npos;
  if (ending.starts_with("_lora")) {
    replace_end(key.module, ".to_out", text_encoder ? ".out_proj" : ".to_out.0");
    if (text_encoder)
      for (const auto& [from, to] : {std::pair{".to_q", ".q_proj"}, std::pair{".to_k", ".k_proj"}, std::pair{".to_v", ".v_proj"}})
        replace_end(key.module, from, to);
  }
}

}  // namespace

bool is_bundled_embedding(const std::string& key) { return key.starts_with("bundle_emb."); }

std::optional<AdapterKey> split_adapter_key(const std::string& key) {
  const Ending* ending = nullptr;
  for (const Ending& candidate : kEndings)
    if (key.ends_with(candidate.text) && (!ending || candidate.text.size() > ending->text.size())) ending = &candidate;
  if (!ending || key.size() == ending->text.size()) return std::nullopt;
  AdapterKey found{.component = "",
                   .module = key.substr(0, key.size() - ending->text.size()),
                   .tensor = std::string(ending->tensor),
                   .format = std::string(ending->format)};
  for (const Beginning& beginning : kBeginnings) {
    if (!found.module.starts_with(beginning.text)) continue;
    found.component = beginning.component;
    found.module.erase(0, beginning.text.size());
    if (!found.component.empty()) break;  // else another may follow: "base_model.model.unet."
  }
  modernise(found, ending->text);
  return found;
}

}  // namespace lorashard
