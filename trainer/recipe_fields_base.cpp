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
       "Base model: a folder in the diffusers layout (unet/, vae/, text_encoder/, tokenizer/, scheduler/). Nothing is "
       "downloaded. Its weights, not its path, are part of the run's identity. Required."});
  f.push_back({"model", "variant", &r.model.variant, anything(), kFree,
               "Weights variant, such as \"fp16\" for *.fp16.safetensors. Empty: the plain files."});
  f.push_back({"model", "pretrained_vae_model_name_or_path", &r.model.pretrained_vae_model_name_or_path, anything(),
               kFree, "Folder of another VAE. Empty: the base model's own."});
  f.push_back({"model", "prediction_type", &r.model.prediction_type, one_of({"", "epsilon", "v_prediction"}), kIdentity,
               "What the UNet predicts. Empty: what the base model's scheduler says."});

  f.push_back({"output", "formats", &r.output.formats, one_of({"diffusers"}), kFree,
               "Adapter files to write: \"diffusers\" is pytorch_lora_weights.safetensors."});
}

}  // namespace lorashard
