// The configs of a base model's parts, together, and those of the published models: what init-base writes and what a single
// file, which holds weights alone, is read with.
#pragma once
#include <optional>
#include <string>

#include "models/model_config.h"

namespace lorashard {

struct BaseConfigs {
  UNet2DConditionConfig unet;
  AutoencoderKLConfig vae;
  CLIPTextConfig text_encoder;
  std::optional<CLIPTextConfig> text_encoder_2;  ///< SDXL alone
  DDPMSchedulerConfig scheduler;
  std::string pad_token = "<|endoftext|>";  ///< of the (first) tokenizer; SDXL's second pads with "!"

  bool is_sdxl() const { return text_encoder_2.has_value(); }
};

BaseConfigs sd15_configs();  ///< stable-diffusion-v1-5/stable-diffusion-v1-5
BaseConfigs sd21_configs();  ///< stabilityai/stable-diffusion-2-1
BaseConfigs sdxl_configs();  ///< stabilityai/stable-diffusion-xl-base-1.0

}  // namespace lorashard
