#include "models/base_configs.h"

namespace lorashard {

BaseConfigs sd15_configs() { return {}; }  // the defaults of the structs

BaseConfigs sd21_configs() {
  BaseConfigs configs;
  configs.unet.sample_size = 96;
  configs.unet.attention_head_dim = {5, 10, 20, 20};
  configs.unet.cross_attention_dim = 1024;
  configs.unet.use_linear_projection = true;
  configs.unet.upcast_attention = true;
  configs.text_encoder.hidden_size = 1024;
  configs.text_encoder.intermediate_size = 4096;
  configs.text_encoder.projection_dim = 512;
  configs.text_encoder.num_hidden_layers = 23;
  configs.text_encoder.num_attention_heads = 16;
  configs.text_encoder.hidden_act = "gelu";
  configs.scheduler.prediction_type = "v_prediction";
  configs.pad_token = "!";
  return configs;
}

BaseConfigs sdxl_configs() {
  BaseConfigs configs;
  configs.unet.sample_size = 128;
  configs.unet.block_out_channels = {320, 640, 1280};
  configs.unet.down_block_types = {"DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"};
  configs.unet.up_block_types = {"CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"};
  configs.unet.transformer_layers_per_block = {1, 2, 10};
  configs.unet.attention_head_dim = {5, 10, 20};
  configs.unet.cross_attention_dim = 2048;
  configs.unet.use_linear_projection = true;
  configs.unet.addition_embed_type = "text_time";
  configs.unet.addition_time_embed_dim = 256;
  configs.unet.projection_class_embeddings_input_dim = 2816;
  configs.vae.scaling_factor = 0.13025;
  configs.text_encoder_2.emplace();
  configs.text_encoder_2->hidden_size = 1280;
  configs.text_encoder_2->intermediate_size = 5120;
  configs.text_encoder_2->projection_dim = 1280;
  configs.text_encoder_2->num_hidden_layers = 32;
  configs.text_encoder_2->num_attention_heads = 20;
  configs.text_encoder_2->hidden_act = "gelu";
  configs.text_encoder_2->with_projection = true;
  return configs;
}

}  // namespace lorashard
