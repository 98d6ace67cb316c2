#include "trainer/class_pictures.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <iterator>
#include <set>
#include <sstream>
#include <string_view>

#include "data/image_write.h"
#include "data/pack.h"
#include "data/parquet_source.h"
#include "dist/agreement.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"
#include "dist/shared_work.h"
#include "trainer/first_use_pack.h"
#include "trainer/picture_maker.h"
#include "trainer/preflight.h"

namespace lorashard {
namespace {

/// All that the pixels of a picture depend on but its number, one a line.
std::string fingerprint_of(const TextToImageOptions& options, at::ScalarType dtype, const std::string& base_hash) {
  std::string all = fmt::format("base {}\ntype {}\nprompt {}\nseed {}\nsize {}x{}\nsteps {}\nguidance {}\nscheduler {}\n",
                                base_hash, toString(dtype), options.prompt, options.seed, options.width, options.height,
                                options.num_inference_steps, options.guidance_scale, options.scheduler);
  if (options.clip_skip > 0) all += fmt::format("clip_skip {}\n", options.clip_skip);
  return sha256(all).substr(0, 12);
}

/// Names of the pictures in `folder` and below it, as packing finds them.
std::vector<std::string> pictures_in(const std::filesystem::path& folder, const ImageFolderOptions& options) {
  std::vector<std::string> names;
  if (!std::filesystem::exists(folder)) return names;
  try {
    for (const SourceImage& image : list_pictures(folder, options).images) names.push_back(image.file_name);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::usage) throw;  // no picture in it, but perhaps what a killed run was writing
  }
  return names;
}

std::vector<int64_t> numbers_of(const std::string& text) {
  std::istringstream words(text);
  return {std::istream_iterator<int64_t>(words), std::istream_iterator<int64_t>()};
}

at::ScalarType dtype_to_make(const Recipe& recipe) {
  const std::string& precision = recipe.dreambooth.prior_generation_precision;
  return dtype_of(precision.empty() ? recipe.train.mixed_precision : precision);
}

/// `base` where its weights have the type that pictures are made with; else another one that has.
StableDiffusion base_to_make(const Recipe& recipe, const StableDiffusion& base) {
  const at::ScalarType dtype = dtype_to_make(recipe);
  if (dtype == base.dtype) return base;
  StableDiffusionOptions options = base_options(recipe, base.device);
  options.dtype = dtype;
  return load_stable_diffusion(recipe.model.pretrained_model_name_or_path, options);
}

TextToImageOptions class_picture_options(const Recipe& recipe) {
  TextToImageOptions options;
  options.prompt = recipe.dreambooth.class_prompt;
  options.clip_skip = recipe.model.clip_skip;
  options.seed = static_cast<uint64_t>(recipe.seed);
  return options;
}

}  // namespace

std::filesystem::path ClassPicturePlan::path_of(int64_t number) const {
  return folder / fmt::format("class-{}-{:06}.png", fingerprint, number);
}

ClassPicturePlan plan_class_pictures(const Recipe& recipe, const StableDiffusion& base, const std::string& base_hash) {
  ClassPicturePlan plan;
  plan.folder = recipe.dreambooth.class_data_dir;
  plan.options = checked_options(base, class_picture_options(recipe));
  plan.fingerprint = fingerprint_of(plan.options, dtype_to_make(recipe), base_hash);
  const std::string ours = fmt::format("class-{}-", plan.fingerprint);
  std::set<std::string> made;
  const ImageFolderOptions listing = class_pictures(recipe).options.folder;
  for (const std::string& name : pictures_in(plan.folder, listing)) {
    if (name.starts_with(ours))
      made.insert(name);
    else
      ++plan.num_given;
  }
  for (int64_t number = 0; number < recipe.dreambooth.num_class_images - plan.num_given; ++number) {
    if (made.contains(plan.path_of(number).filename().string()))
      ++plan.num_made;
    else
      plan.missing.push_back(number);
  }
  if (!plan.missing.empty() && is_parquet_source(plan.folder, listing))
    throw Error(ErrorKind::usage,
                fmt::format("looking at the class pictures: 'dreambooth.class_data_dir' = '{}': expected {} pictures in its parquet "
                            "files, found {}",
                            plan.folder.string(), recipe.dreambooth.num_class_images, plan.num_given),
                "lower dreambooth.num_class_images; what is missing is only made in a folder of pictures");
  return plan;
}

void make_class_pictures(Communicator& communicator, const Recipe& recipe, const StableDiffusion& base,
                         const std::string& base_hash) {
  ClassPicturePlan plan;
  run_agreed(communicator, "looking at the class pictures", [&] {
    if (communicator.world().rank == 0 && !std::filesystem::exists(recipe.dreambooth.class_data_dir))
      std::filesystem::create_directories(recipe.dreambooth.class_data_dir);
    plan = plan_class_pictures(recipe, base, base_hash);
  });
  plan.missing = numbers_of(communicator.all_gather(fmt::format("{}", fmt::join(plan.missing, " ")))[0]);
  if (plan.missing.empty()) return;
  if (communicator.world().rank == 0) {
    log::info("'{}' holds {} class pictures and {} made before: making {} more of \"{}\"", plan.folder.string(), plan.num_given,
              plan.num_made, plan.missing.size(), plan.options.prompt);
  }
  StableDiffusion maker;
  run_agreed(communicator, "loading the base model for class pictures", [&] { maker = base_to_make(recipe, base); });
  share_work(communicator, {.doing_what = "making class pictures", .items = plan.missing}, [&](int64_t number) {
    const std::vector<uint8_t> png =
        encode_png(to_image(text_to_image(maker, plan.options, static_cast<uint64_t>(number))));
    write_durably(plan.path_of(number), std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
    return true;
  });
}

}  // namespace lorashard
