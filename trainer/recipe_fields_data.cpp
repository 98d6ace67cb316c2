// Keys of [data].
#include "trainer/recipe_checks.h"

namespace lorashard {

void add_data_fields(Fields& f, Recipe& r) {
  f.push_back({"data", "train_data_dir", &r.data.train_data_dir, anything(), kFree,
               "A pack made by `lorashard pack`, or what that takes, which is packed on first use: an image folder, a folder of parquet "
               "files, a .parquet file. Its content, not its path, is part of the run's identity. Required, but not with task = \"dreambooth\"."});
  f.push_back({"data", "resolution", &r.data.resolution, multiple_of(8, 16384), kIdentity,
               "Side of the square training pictures in pixels; a multiple of what the UNet needs (64 for SD 1.x and 2.x, 32 for SDXL). "
               "With enable_bucket pictures have about the area of that square."});
  f.push_back({"data", "enable_bucket", &r.data.enable_bucket, anything(), kIdentity,
               "Aspect-ratio buckets, by kohya's rule: instead of squares, pictures are resized to cover the size of "
               "nearest aspect ratio "
               "and cropped to it. Each micro-batch is of one size; docs/determinism.md has the rule."});
  f.push_back({"data", "min_bucket_reso", &r.data.min_bucket_reso, multiple_of(8, 16384), kIdentity,
               "With enable_bucket, and not with bucket_no_upscale: the shortest side of a bucket, a multiple of "
               "bucket_reso_steps."});
  f.push_back({"data", "max_bucket_reso", &r.data.max_bucket_reso, multiple_of(8, 16384), kIdentity,
               "The longest side, in the same way."});
  f.push_back({"data", "bucket_reso_steps", &r.data.bucket_reso_steps, multiple_of(8, 16384), kIdentity,
               "With enable_bucket: the sides of buckets are multiples of it, and it of what the UNet needs (64 for SD "
               "1.x and 2.x, 32 for "
               "SDXL)."});
  f.push_back({"data", "bucket_no_upscale", &r.data.bucket_no_upscale, anything(), kIdentity,
               "With enable_bucket: pictures are never made larger. Each has the bucket that its own size leaves: made "
               "smaller to the area of "
               "the square of the resolution where it has more, then cropped to multiples of bucket_reso_steps."});
  f.push_back(
      {"data", "center_crop", &r.data.center_crop, anything(), kIdentity, "Crop the middle instead of a random place."});
  f.push_back(
      {"data", "random_flip", &r.data.random_flip, anything(), kIdentity, "Flip half of the pictures left to right."});
  f.push_back({"data", "image_interpolation_mode", &r.data.image_interpolation_mode,
               one_of({"nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"}), kIdentity,
               "How pictures are resized."});
  f.push_back({"data", "max_train_samples", &r.data.max_train_samples, at_least(0), kIdentity,
               "Use only the first so many samples; one with repeats counts so often. 0: all."});
  f.push_back({"data", "dataloader_num_workers", &r.data.dataloader_num_workers, between(0, 1024), kFree,
               "Threads of each rank that prepare batches ahead. 0: none, batches are made between steps."});
  f.push_back({"data", "image_column", &r.data.image_column, not_empty(), kFree,
               "Field of metadata.jsonl or metadata.csv that names the picture, when an image folder is packed. Of parquet files the "
               "column of pictures, where the default means \"image\"."});
  f.push_back({"data", "caption_column", &r.data.caption_column, not_empty(), kFree,
               "Field of metadata.jsonl or metadata.csv that holds the caption, when an image folder is packed, or column of parquet "
               "files. In JSON and parquet it may be a list of captions, of which one is drawn each time."});
  f.push_back({"data", "mask_column", &r.data.mask_column, anything(), kFree,
               "Field of these that names a mask as large as the picture, when an image folder is packed; in parquet files it holds the "
               "mask. Empty: none."});
  f.push_back({"data", "weight_column", &r.data.weight_column, anything(), kFree,
               "Field of these with a factor of the picture's loss, when an image folder is packed. Empty: none."});
  f.push_back({"data", "repeats_column", &r.data.repeats_column, anything(), kFree,
               "Field of these that says how often an epoch has the picture, when an image folder is packed. Empty: once."});
  f.push_back({"data", "alpha_masks", &r.data.alpha_masks, anything(), kFree,
               "A picture's alpha channel is its mask, when an image folder is packed."});
  f.push_back({"data", "all_caption_lines", &r.data.all_caption_lines, anything(), kFree,
               "Each line of a .txt beside a picture is a caption of its own, when an image folder is packed."});
  f.push_back({"data", "on_bad_image", &r.data.on_bad_image, one_of({"stop", "skip"}), kFree,
               "What to do with a picture that can't be decoded, when an image folder is packed."});
  f.push_back({"data", "cache_latents", &r.data.cache_latents, anything(), kFree,
               "Encode every picture once, before the first step, and keep what the VAE makes of it on disk (with random_flip: of both "
               "sides). Needs center_crop. The bits of the run are those without."});
  f.push_back({"data", "cache_text_embeddings", &r.data.cache_text_embeddings, anything(), kFree,
               "Encode every distinct caption once, before the first step, and keep the embeddings on disk. Captions that shuffling makes "
               "are encoded when they come. Not with train_text_encoder. The bits of the run are those without."});
  f.push_back({"data", "cache_dir", &r.data.cache_dir, anything(), kFree,
               "Folder of these caches, which runs may share: what is in it is found by hashes of pictures, captions and base. Empty: "
               "cache/ in output_dir."});
}

}  // namespace lorashard
