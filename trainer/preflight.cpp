#include "trainer/preflight.h"

#include <unistd.h>

#include <algorithm>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "trainer/checkpoint.h"
#include "trainer/held_out_loss.h"
#include "trainer/recipe_options.h"

namespace lorashard {

void prepare_output_dir(const std::filesystem::path& output_dir) {
  std::error_code error;
  std::filesystem::create_directories(output_dir, error);
  const std::string doing = fmt::format("preparing the output folder '{}'", output_dir.string());
  if (error)
    throw Error(ErrorKind::io, fmt::format("{}: {}", doing, error.message()),
                "choose an output_dir that can be written");
  // Two runs may be here: the lease comes next.
  const std::filesystem::path trial = output_dir / fmt::format(".writable-{}", getpid());
  write_durably(trial, std::string_view());
  std::filesystem::remove(trial, error);
}

void require_custom_prompts(const Recipe& recipe, const Pack& pack) {
  if (!recipe.dreambooth.custom_instance_prompts) return;
  for (int64_t row = 0; row < pack.num_samples(); ++row) {
    if (!pack.caption(row).empty()) return;
  }
  throw Error(ErrorKind::usage,
              fmt::format("opening the training data: dreambooth.custom_instance_prompts is true, and none of the {} pictures of "
                          "'{}' has a caption",
                          pack.num_samples(), pack.folder().string()),
              "captions are read from metadata.jsonl, metadata.csv or .txt files beside the pictures when they are packed");
}

bool has_no_captions(const Recipe& recipe, const Pack& pack) {
  if (recipe.task != "text_to_image" || !recipe.captions.caption_prefix.empty() || !recipe.captions.caption_suffix.empty()) return false;
  for (int64_t row = 0; row < pack.num_samples(); ++row) {
    for (const std::string& caption : pack.captions(row)) {
      if (!caption.empty()) return false;
    }
  }
  return true;
}

int64_t num_train_samples(const Recipe& recipe, const Pack& pack) {
  const int64_t limit = recipe.data.max_train_samples;
  int64_t images = pack.num_images_in_epoch();
  for (const int64_t row : held_out_rows(recipe, pack)) images -= pack.repeats(row);
  return limit > 0 ? std::min(images, limit) : images;
}

std::vector<Bucket> train_buckets(const Recipe& recipe, const Pack& pack) {
  const auto options = bucket_options(recipe);
  return options ? make_buckets(pack, BucketManager(*options), num_train_samples(recipe, pack)) : std::vector<Bucket>();
}

int64_t images_per_epoch(const Recipe& recipe, int64_t num_train_samples, const std::vector<Bucket>& buckets) {
  if (buckets.empty()) return num_train_samples;
  return micro_batches_per_epoch(buckets, recipe.train.train_batch_size) * recipe.train.train_batch_size;
}

std::string data_hash(const Pack& pack, const Pack* class_pack) {
  return class_pack != nullptr ? fmt::format("{}+{}", pack.hash(), class_pack->hash()) : pack.hash();
}

void require_class_images(const Recipe& recipe, const Pack& class_pack) {
  const int64_t found = class_pack.num_samples(), wanted = recipe.dreambooth.num_class_images;
  if (found >= wanted) return;
  throw Error(ErrorKind::usage,
              fmt::format("opening the training data: 'dreambooth.class_data_dir' = '{}' holds {} pictures, and "
                          "dreambooth.num_class_images is {}",
                          recipe.dreambooth.class_data_dir, found, wanted),
              fmt::format("put more pictures there, or set num_class_images = {}", found));
}

std::optional<std::filesystem::path> checkpoint_to_resume(const Recipe& recipe) {
  const std::string& wanted = recipe.checkpoint.resume_from_checkpoint;
  if (wanted != "latest" && wanted != "none") return wanted;
  const std::optional<std::filesystem::path> newest = newest_checkpoint(recipe.output_dir);
  if (newest && wanted == "none") {
    throw Error(ErrorKind::usage,
                fmt::format("starting the training anew: '{}' holds checkpoints of an earlier run", recipe.output_dir),
                "choose another output_dir, remove it, or go on with resume_from_checkpoint = \"latest\"");
  }
  return newest;
}

at::ScalarType dtype_of(const std::string& precision) {
  return precision == "bf16" ? at::kBFloat16 : precision == "fp16" ? at::kHalf : at::kFloat;
}

StableDiffusionOptions base_options(const Recipe& recipe, at::Device device) {
  StableDiffusionOptions options;
  options.variant = recipe.model.variant;
  options.config_folder = recipe.model.config;
  options.tokenizer = recipe.model.tokenizer_name;
  options.vae_folder = recipe.model.pretrained_vae_model_name_or_path;
  options.prediction_type = recipe.model.prediction_type;
  options.clip_skip = recipe.model.clip_skip;
  options.rescale_betas_zero_snr = recipe.model.rescale_betas_zero_snr;
  options.dtype = dtype_of(recipe.train.mixed_precision);
  options.device = device;
  return options;
}

void require_resolution_fits(const Recipe& recipe, const StableDiffusion& base) {
  const int64_t multiple = base.vae_scale_factor() << (base.unet->config().block_out_channels.size() - 1);
  const bool buckets = recipe.data.enable_bucket;
  const int64_t side = buckets ? recipe.data.bucket_reso_steps : recipe.data.resolution;
  if (side % multiple == 0) return;
  throw Error(ErrorKind::usage,
              fmt::format("checking the recipe against the base model: '{}' = {} is not a multiple of {}",
                          buckets ? "data.bucket_reso_steps" : "data.resolution", side, multiple),
              "the UNet halves the latents several times; choose the nearest multiple");
}

int64_t micro_batches_of(const Recipe& recipe) {
  return *recipe.train.total_batch_size / recipe.train.train_batch_size;
}

}  // namespace lorashard
