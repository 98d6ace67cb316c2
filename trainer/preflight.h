// What must hold before step 0, each check on its own: the Trainer runs them in its order, `lorashard doctor` names
// them one by one. Each throws Error with the fault and a hint. One process; what ranks must agree on is the caller's.
#pragma once
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "data/bucket_sampler.h"
#include "data/pack.h"
#include "models/stable_diffusion.h"
#include "trainer/recipe.h"

namespace lorashard {

/// Makes the folder, and proves by a small file that it can be written.
void prepare_output_dir(const std::filesystem::path& output_dir);
/// With dreambooth.custom_instance_prompts: some picture must have a caption of its own.
void require_custom_prompts(const Recipe& recipe, const Pack& pack);
/// A text_to_image recipe whose pack has not one caption, and nothing that is put before or behind it: allowed, but hardly meant.
bool has_no_captions(const Recipe& recipe, const Pack& pack);
/// Images of the pack that an epoch has, by their repeats, without those of rows that are held out.
int64_t num_train_samples(const Recipe& recipe, const Pack& pack);
/// The same by bucket; empty without enable_bucket. Error(bad_data) where bucket_no_upscale leaves nothing of a picture.
std::vector<Bucket> train_buckets(const Recipe& recipe, const Pack& pack);
/// Slots of an epoch: num_train_samples, with buckets what their micro-batches hold, which are all whole.
int64_t images_per_epoch(const Recipe& recipe, int64_t num_train_samples, const std::vector<Bucket>& buckets);
/// What a checkpoint remembers the training data by: the pack's hash, and behind it the class pack's where there is one.
std::string data_hash(const Pack& pack, const Pack* class_pack);
/// The class pack must hold num_class_images pictures.
void require_class_images(const Recipe& recipe, const Pack& class_pack);
/// The checkpoint a start goes on from, not yet read.
std::optional<std::filesystem::path> checkpoint_to_resume(const Recipe& recipe);
/// Of the frozen weights: mixed_precision's word.
at::ScalarType dtype_of(const std::string& precision);
StableDiffusionOptions base_options(const Recipe& recipe, at::Device device = at::kCPU);
/// The sizes of pictures must be what the UNet can halve as often as it does.
void require_resolution_fits(const Recipe& recipe, const StableDiffusion& base);
/// Of an optimizer step, over all ranks. Requires: a resolved recipe.
int64_t micro_batches_of(const Recipe& recipe);

}  // namespace lorashard
