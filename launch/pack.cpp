// lorashard pack: an image folder or parquet files to a pack of HDF5 shards, and what was left out of it and why.
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/pack.h"
#include "launch/commands.h"

namespace lorashard {
namespace {

constexpr const char* kFooter =
    "SOURCE is searched with its sub-folders for PNG, JPEG and WebP files. Their captions come from the first of "
    "these\n"
    "that is there, or from what --captions says:\n"
    "  metadata_jsonl  metadata.jsonl: {\"file_name\": \"a.png\", \"text\": \"a red bird\"} a line; \"text\" may be an\n"
    "                  array of captions, of which one is drawn each time\n"
    "  metadata_csv    metadata.csv: the same columns, with a header\n"
    "  txt_beside      a.txt beside a.png: its first line that isn't blank\n"
    "  none            no captions, as DreamBooth wants it\n"
    "  folder_names    the name of the folder a picture is in (only when asked for)\n"
    "\n"
    "A .parquet file, or a folder with *.parquet files in it or in its data/ (as Hugging Face has data sets), is packed from\n"
    "their columns, unless pictures with captions lie in the folder too; --captions parquet insists on it. Of files that\n"
    "begin with \"train\" alone these are taken. --image-column (there: image) is a column of pictures, a struct of bytes and\n"
    "path or binary; --caption-column one of strings, or of lists of which one is drawn each time; --mask-column one of\n"
    "pictures too.\n"
    "\n"
    "File names in a table are relative to it. Pictures are kept as they are, byte for byte; each is decoded once to\n"
    "prove that it can be. The pack depends on the pictures, their names and captions and --shard-bytes alone.\n"
    "\n"
    "  lorashard pack pictures --out pack\n"
    "  lorashard pack pictures --out pack --caption-column additional_feature --on-bad-image skip\n"
    "  lorashard pack pokemon-blip-captions --out pack\n"
    "  lorashard inspect pack --verify";

struct PackArguments {
  std::string source, out, on_bad_image = "stop", captions = "auto";
  PackOptions options;
  bool json = false;
};

void print_json(const PackReport& report, const std::string& out) {
  nlohmann::ordered_json left_out = nlohmann::ordered_json::array();
  for (const LeftOut& item : report.left_out)
    left_out.push_back({{"file_name", item.file_name}, {"reason", item.reason}});
  const nlohmann::ordered_json json = {{"pack", out},
                                       {"hash", Pack(out).hash()},
                                       {"num_samples", report.num_samples},
                                       {"num_captions", report.num_captions},
                                       {"captions", to_string(report.caption_source)},
                                       {"num_shards", report.num_shards},
                                       {"image_bytes", report.bytes},
                                       {"num_masks", report.num_masks},
                                       {"num_images_in_epoch", report.num_images_in_epoch},
                                       {"num_skipped", report.num_skipped},
                                       {"num_other_files", report.num_other_files},
                                       {"num_longer_caption_files", report.num_longer_caption_files},
                                       {"left_out", left_out}};
  std::cout << json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
}

void run_pack(PackArguments& arguments) {
  arguments.options.on_bad_image = arguments.on_bad_image == "skip" ? OnBadImage::skip : OnBadImage::stop;
  if (arguments.captions != "auto") arguments.options.folder.captions = parse_caption_source(arguments.captions);
  const PackReport report = pack_images(arguments.source, arguments.out, arguments.options);
  log_report(report, arguments.out);
  if (arguments.json) print_json(report, arguments.out);
}

}  // namespace

void add_pack_command(CLI::App& app) {
  auto arguments = std::make_shared<PackArguments>();
  PackOptions& options = arguments->options;
  CLI::App* command = app.add_subcommand("pack", "put captioned pictures into HDF5 shards, to train from");
  command->footer(kFooter);
  command->add_option("source", arguments->source, "the folder of pictures or parquet files, or a .parquet file")->required();
  command->add_option("--out", arguments->out, "the folder to make the pack in")->required();
  command->add_option("--captions", arguments->captions, "where captions come from (see below)")
      ->check(CLI::IsMember({"auto", "metadata_jsonl", "metadata_csv", "txt_beside", "none", "folder_names", "parquet"}))
      ->capture_default_str();
  command->add_option("--image-column", options.folder.image_column,
                      "the table's column of file names; in parquet the column of pictures, by default image")
      ->capture_default_str();
  command->add_option("--caption-column", options.folder.caption_column, "the table's column of captions")
      ->capture_default_str();
  command->add_option("--mask-column", options.folder.mask_column,
                      "the table's column of masks, pictures of the same size, white where the loss counts");
  command->add_option("--weight-column", options.folder.weight_column, "the table's column of loss weights, from 0");
  command->add_option("--repeats-column", options.folder.repeats_column,
                      "the table's column of how often an epoch has a picture");
  command->add_flag("--alpha-masks", options.alpha_masks, "a picture's alpha channel is its mask, where it has no other");
  command->add_flag("--all-caption-lines", options.folder.all_caption_lines,
                    "each line of a .txt is a caption of its own; one is drawn each time");
  command->add_flag("--allow-missing-captions", options.folder.allow_missing_captions,
                    "take pictures without a caption too, with an empty one");
  command->add_option("--on-bad-image", arguments->on_bad_image, "a picture that can't be decoded: stop, or skip it")
      ->check(CLI::IsMember({"stop", "skip"}))
      ->capture_default_str();
  command->add_option("--max-samples", options.max_samples, "take only the first so many (0: all)")
      ->capture_default_str();
  command->add_option("--shard-bytes", options.shard_bytes, "a shard ends when its pictures reach this; held in memory")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  command->add_option("--threads", options.num_threads, "threads that decode (0: one a core)")->capture_default_str();
  command->add_flag("--overwrite", options.overwrite, "replace the pack that is in --out");
  command->add_flag("--json", arguments->json, "the report as JSON on stdout too");
  command->callback([arguments] { run_pack(*arguments); });
}

}  // namespace lorashard
