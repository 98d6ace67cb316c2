// Keys of [validation]. Pictures change nothing about the training, so only validation_split is identity.
#include "models/sampling_scheduler.h"
#include "trainer/recipe_checks.h"

namespace lorashard {
namespace {

constexpr int64_t kMostPictures = 1024;

FieldCheck prompts() {
  return {"none empty", [](const FieldMember& member) {
            const auto& texts = std::get<StringOrArray*>(member)->texts;
            for (const std::string& text : texts)
              if (text.empty()) return false;
            return true;
          }};
}

}  // namespace

void add_validation_fields(Fields& f, Recipe& r) {
  Recipe::Validation& v = r.validation;
  f.push_back(
      {"validation", "validation_prompt", &v.validation_prompt, prompts(), kFree,
       "Make pictures of this prompt, or these, while training: samples/step-N.png, and in TensorBoard. []: none."});
  f.push_back(
      {"validation", "negative_prompt", &v.negative_prompt, anything(), kFree, "What the pictures are not to show."});
  f.push_back({"validation", "num_validation_images", &v.num_validation_images, between(1, kMostPictures), kFree,
               "Pictures of each prompt; picture i has the same noise at every step."});
  f.push_back({"validation", "validation_steps", &v.validation_steps, between(1, kMostSteps), kFree,
               "Make them every so many optimizer steps. Excludes validation_epochs."});
  f.push_back({"validation", "validation_epochs", &v.validation_epochs, between(1, kMostSteps), kFree,
               "Make them every so many epochs. Without either key: 1 (task = \"dreambooth\": 50), as the reference "
               "scripts."});
  f.push_back({"validation", "at_start", &v.at_start, anything(), kFree,
               "Make them before the first step too: what the base alone does."});
  f.push_back({"validation", "at_end", &v.at_end, anything(), kFree, "Make them after the last step."});
  f.push_back({"validation", "validation_split", &v.validation_split, below_one(), kIdentity,
               "Hold this part of the pictures out of training, chosen by the seed, and log the loss on them as val_loss with the "
               "steps that validation_steps or validation_epochs name, and the last with at_end. Not with enable_bucket. 0: none."});
  f.push_back({"validation", "validation_seed", &v.validation_seed, at_least(0), kFree,
               "Seed of the pictures' noise. Without it: the run's seed."});
  f.push_back({"validation", "num_inference_steps", &v.num_inference_steps, between(1, 1000), kFree,
               "Steps of the scheduler for each picture."});
  f.push_back({"validation", "guidance_scale", &v.guidance_scale, at_least(0), kFree,
               "Classifier-free guidance. 1 or less: none."});
  f.push_back({"validation", "scheduler", &v.scheduler, one_of(sampling_scheduler_names()), kFree,
               "How pictures are sampled."});
  f.push_back({"validation", "use_karras_sigmas", &v.use_karras_sigmas, anything(), kFree,
               "Karras' noise levels; for dpmsolver++ and euler."});
  f.push_back({"validation", "height", &v.height, at_least(0), kFree, "Pixels. 0: what the base was made for."});
  f.push_back({"validation", "width", &v.width, at_least(0), kFree, "Pixels. 0: what the base was made for."});
}

}  // namespace lorashard
