// Keys above all tables, [model] and [output].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_base_fields(Fields& f, Recipe& r) {
  f.push_back({"", "task", &r.task, one_of({"text_to_image", "dreambooth"}), kIdentity,
               "\"text_to_image\": captioned pictures. \"dreambooth\": a few pictures of one subject; see [dreambooth]."});
  f.push_back({"", "output_dir", &r.output_dir, not_empty(), kFree,
               "Folder of the run: adapter, checkpoints, metrics. Made when it isn't there. Required."});
  f.push_back({"", "seed", &r.seed, at_least(0), kIdentity,
               "Every random number of the run follows from it and the number of the image in the run."});

  f.push_back(
      {"model", "pretrained_model_name_or_path", &r.model.pretrained_model_name_or_path, not_empty(), kFree,
       "Base model: a folder in the diffusers layout (unet/, vae/, text_encoder/, tokenizer/, scheduler/), or one .safetensors "
       "file in the original layout of SD 1.x, SD 2.x or SDXL. Nothing is downloaded. Its weights, not its path, are part of the "
       "run's identity. Required."});
  f.push_back({"model", "config", &r.model.config, anything(), kFree,
               "For a base in one file: a folder in the diffusers layout whose configs and tokenizers go with it, as "
               "from_single_file's config; it needs no weights. Empty: the configs of SD 1.5, SD 2.1 or SDXL's base."});
  f.push_back({"model", "tokenizer_name", &r.model.tokenizer_name, anything(), kFree,
               "Tokenizer: its folder, a diffusers folder that holds one, or CLIP's vocabulary file "
               "(bpe_simple_vocab_16e6.txt.gz). Empty: the base's own; a base in one file has none."});
  f.push_back({"model", "variant", &r.model.variant, anything(), kFree,
               "Weights variant, such as \"fp16\" for *.fp16.safetensors. Empty: the plain files."});
  f.push_back({"model", "pretrained_vae_model_name_or_path", &r.model.pretrained_vae_model_name_or_path, anything(),
               kFree, "Another VAE: its folder, a diffusers folder, or one .safetensors file. Empty: the base model's own."});
  f.push_back({"model", "prediction_type", &r.model.prediction_type, one_of({"", "epsilon", "v_prediction"}), kIdentity,
               "What the UNet predicts. Empty: what the base model's scheduler says."});
  f.push_back({"model", "rescale_betas_zero_snr", &r.model.rescale_betas_zero_snr, anything(), kIdentity,
               "Rescale the noise schedule so that its last timestep is pure noise (arXiv 2305.08891; for v_prediction). "
               "false: what the base model's scheduler says."});
  f.push_back({"model", "clip_skip", &r.model.clip_skip, between(0, 1000), kIdentity,
               "This many of the text encoders' last layers are not used, as clip_skip of diffusers' pipelines counts them: 1 "
               "takes the states before the last layer (kohya's scripts and the web UIs call that 2). Pictures are made with it too."});

  f.push_back({"output", "formats", &r.output.formats, one_of({"diffusers", "kohya", "peft"}), kFree,
               "Adapter files to write at the end: pytorch_lora_weights.safetensors (diffusers) always, "
               "kohya_lora_weights.safetensors, peft/. Each is read again and compared."});
  f.push_back({"output", "license", &r.output.license, anything(), kFree,
               "Licence in the model card, by the Hub's name for it. Empty: that of the family's first bases, "
               "creativeml-openrail-m for SD 1.x and 2.x (as the scripts write), openrail++ for SDXL."});
}

}  // namespace lorashard
