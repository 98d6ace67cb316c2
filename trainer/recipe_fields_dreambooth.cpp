// Keys of [dreambooth].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_dreambooth_fields(Fields& f, Recipe& r) {
  Recipe::DreamBooth& d = r.dreambooth;
  f.push_back({"dreambooth", "instance_data_dir", &d.instance_data_dir, anything(), kFree,
               "Pictures of the subject: a folder of pictures or parquet files, or a .parquet file, which is packed on first use, or a "
               "pack. Its content, not its path, is part of the run's identity. Required with task = \"dreambooth\", which doesn't read "
               "data.train_data_dir."});
  f.push_back({"dreambooth", "instance_prompt", &d.instance_prompt, anything(), kIdentity,
               "The caption of every instance picture, with the word that shall mean the subject: \"a photo of sks dog\". "
               "Required with task = \"dreambooth\"."});
  f.push_back({"dreambooth", "custom_instance_prompts", &d.custom_instance_prompts, anything(), kIdentity,
               "Train an instance picture with its own caption (data.caption_column, a .txt file, or the pack's), and "
               "only those without one with instance_prompt."});
  f.push_back({"dreambooth", "with_prior_preservation", &d.with_prior_preservation, anything(), kIdentity,
               "Train a class picture beside each instance picture, so that the class stays what it was. Batch sizes "
               "and epochs count instance pictures."});
  f.push_back({"dreambooth", "class_data_dir", &d.class_data_dir, anything(), kFree,
               "Pictures of the class: a folder of pictures or parquet files, or a pack. What a folder of pictures lacks of "
               "num_class_images is made first with the base model, shared by all ranks, and kept there. Its content is part of the run's identity. Required with prior "
               "preservation."});
  f.push_back({"dreambooth", "class_prompt", &d.class_prompt, anything(), kIdentity,
               "The caption of every class picture: \"a photo of dog\". Required with prior preservation."});
  f.push_back({"dreambooth", "num_class_images", &d.num_class_images, between(1, kMostImages), kIdentity,
               "How many class pictures are used: the first ones of class_data_dir."});
  f.push_back({"dreambooth", "prior_loss_weight", &d.prior_loss_weight, at_least(0), kIdentity,
               "The loss is that of the instance pictures plus this times that of the class pictures."});
  f.push_back({"dreambooth", "prior_generation_precision", &d.prior_generation_precision, one_of({"", "no", "fp32", "fp16", "bf16"}), kFree,
               "Type of the base's weights while class pictures are made; \"no\" is fp32. Empty: train.mixed_precision."});
}

}  // namespace lorashard
