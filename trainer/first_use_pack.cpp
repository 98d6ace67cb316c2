#include "trainer/first_use_pack.h"

#include "data/parquet_source.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace {

PackOptions pack_options(const Recipe& recipe) {
  PackOptions options;
  options.folder.image_column = recipe.data.image_column;
  options.folder.caption_column = recipe.data.caption_column;
  options.folder.mask_column = recipe.data.mask_column;
  options.folder.weight_column = recipe.data.weight_column;
  options.folder.repeats_column = recipe.data.repeats_column;
  options.folder.all_caption_lines = recipe.data.all_caption_lines;
  options.alpha_masks = recipe.data.alpha_masks;
  options.on_bad_image = recipe.data.on_bad_image == "skip" ? OnBadImage::skip : OnBadImage::stop;
  return options;
}

/// The folder, and what else decides which pictures of it are in the pack.
std::string origin_of(const PictureSource& source) {
  const std::string folder = std::filesystem::canonical(source.folder).string();
  return source.options.max_samples > 0 ? fmt::format("{}\nthe first {}", folder, source.options.max_samples) : folder;
}

}  // namespace

PictureSource training_pictures(const Recipe& recipe) {
  PictureSource source{.key = "data.train_data_dir",
                       .folder = recipe.data.train_data_dir,
                       .pack = std::filesystem::path(recipe.output_dir) / "pack",
                       .options = pack_options(recipe)};
  if (recipe.task != "dreambooth") return source;
  source.key = "dreambooth.instance_data_dir";
  source.folder = recipe.dreambooth.instance_data_dir;
  source.options.folder.allow_missing_captions = true;
  if (!recipe.dreambooth.custom_instance_prompts) source.options.folder.captions = CaptionSource::none;
  return source;
}

PictureSource class_pictures(const Recipe& recipe) {
  PictureSource source{.key = "dreambooth.class_data_dir",
                       .folder = recipe.dreambooth.class_data_dir,
                       .pack = std::filesystem::path(recipe.output_dir) / "class-pack",
                       .options = pack_options(recipe)};
  ImageFolderOptions& folder = source.options.folder;
  folder.captions = CaptionSource::none;
  folder.mask_column = folder.weight_column = folder.repeats_column = "";  // of the instances' columns class pictures have none
  source.options.max_samples = recipe.dreambooth.num_class_images;
  return source;
}

bool is_packed(const PictureSource& source) {
  if (!std::filesystem::is_directory(source.folder) && !is_parquet_source(source.folder, source.options.folder)) {
    throw Error(ErrorKind::usage,
                fmt::format("opening the training data: '{}' = '{}' is no folder", source.key, source.folder.string()),
                "give a folder of pictures, a folder of parquet files or one .parquet file, or a pack made by: lorashard pack SOURCE --out DIR");
  }
  return is_pack(source.folder);
}

void pack_on_first_use(const PictureSource& source) {
  const std::filesystem::path remembered = source.pack.string() + ".source";
  const std::string origin = origin_of(source);
  if (is_pack(source.pack)) {
    const std::string before = std::filesystem::exists(remembered) ? read_file(remembered) : "an unknown folder";
    if (before != origin) {
      throw Error(ErrorKind::usage,
                  fmt::format("opening the training data: '{}' was packed from '{}', and {} is '{}' now",
                              source.pack.string(), before, source.key, origin),
                  "choose another output_dir, or remove that pack to make it anew");
    }
    log::info("training on '{}', packed from '{}' at the first start; changes made there since don't count",
              source.pack.string(), source.folder.string());
    return;
  }
  log::info("'{}' is no pack: packing its pictures into '{}'", source.folder.string(), source.pack.string());
  write_durably(remembered, origin);
  log_report(pack_images(source.folder, source.pack, source.options), source.pack);
}

}  // namespace lorashard
