#include "trainer/report.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <utility>

#include "data/data_loader.h"
#include "data/bucket_sampler.h"
#include "data/image_transform.h"
#include "data/image_write.h"
#include "data/pack.h"
#include "data/sampler.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "models/diffusers_folder.h"
#include "models/single_file.h"
#include "trainer/first_use_pack.h"
#include "trainer/held_out_loss.h"
#include "trainer/preflight.h"
#include "trainer/recipe.h"
#include "trainer/recipe_options.h"
#include "trainer/svg_text.h"

namespace lorashard {
namespace {

constexpr int64_t kMostPictures = 16;
constexpr double kScale = 1.5;  // pixels of report.png per unit of the drawing

double number_or_nan(const nlohmann::json& line, const char* key) {
  const auto found = line.find(key);
  return found != line.end() && found->is_number() ? found->get<double>() : std::numeric_limits<double>::quiet_NaN();
}

RecordedStep parse_line(const std::string& text) {
  const auto line = nlohmann::json::parse(text);
  RecordedStep step;
  step.global_step = line.at("global_step").get<int64_t>();
  step.loss = number_or_nan(line, "loss");
  step.lr = number_or_nan(line, "lr");
  step.images_per_second = number_or_nan(line, "images_per_second");
  step.wall_s = number_or_nan(line, "wall_s");
  step.skipped = line.value("skipped", false);
  step.world_size = line.value("world_size", int64_t{0});
  step.data_wait_ms = number_or_nan(line, "data_wait_ms");
  step.peak_device_memory_bytes = line.value("peak_device_memory_bytes", int64_t{0});
  return step;
}

std::string base_name(std::filesystem::path path) {
  if (path.filename().empty()) path = path.parent_path();  // "base/" is "base"
  return path.filename().string();
}

std::string describe(const Recipe& recipe) {
  const auto total = recipe.train.total_batch_size.value_or(recipe.train.train_batch_size);
  return fmt::format("{} on {}, LoRA rank {}, {} px{}, {} image{} a step, {} {}", recipe.task,
                     base_name(recipe.model.pretrained_model_name_or_path), recipe.lora.rank, recipe.data.resolution,
                     recipe.data.enable_bucket ? " in buckets" : "", total, total == 1 ? "" : "s",
                     recipe.optimizer.optimizer, short_number(recipe.optimizer.learning_rate));
}

/// Whether training flips a picture before it crops it: SDXL's does (trainer/trainer_setup.cpp).
bool flips_before_crop(const Recipe& recipe) {
  if (!recipe.data.random_flip) return false;  // nothing is flipped
  const std::filesystem::path base = recipe.model.pretrained_model_name_or_path;
  try {
    if (names_single_file(base)) return single_file_family(SafetensorsFile(base)) == SingleFileFamily::sdxl;
    return read_diffusers_configs(base).is_sdxl();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
    log::warning("{}; the report's pictures are cropped and flipped as for SD 1.x and 2.x", error.message());
    return false;
  }
}

/// The first slots of the run, at most kMostPictures, and how their pictures are framed.
std::vector<std::pair<Slot, Framing>> first_slots(const Recipe& recipe, const Pack& pack, int64_t num_samples) {
  const auto seed = static_cast<uint64_t>(recipe.seed);
  const int64_t count = std::min(num_samples, kMostPictures);
  std::vector<std::pair<Slot, Framing>> slots;
  if (const auto options = bucket_options(recipe)) {
    const BucketManager manager(*options);
    const BucketSampler sampler(seed, recipe.train.train_batch_size, train_buckets(recipe, pack));
    for (int64_t m = 0; static_cast<int64_t>(slots.size()) < count; ++m) {
      for (const Slot& slot : sampler.micro_batch(m).slots) {
        if (static_cast<int64_t>(slots.size()) < count)
          slots.emplace_back(slot, manager.select_bucket(pack.size(slot.row), pack.file_name(slot.row)));
      }
    }
    return slots;
  }
  const std::vector<int64_t> repeats = repeats_of(pack, held_out_rows(recipe, pack));
  for (const Slot& slot : Sampler(seed, num_samples, count, /*class_images=*/false, repeats).micro_batch(0))
    slots.emplace_back(slot, square_framing(pack.size(slot.row), recipe.data.resolution));
  return slots;
}

/// The pictures of the first slots of the run, with the crop and the flip they were trained with.
std::vector<ReportPicture> first_pictures(const Recipe& recipe, const Pack& pack, int64_t num_samples) {
  const TransformOptions options{.resolution = recipe.data.resolution,
                                 .center_crop = recipe.data.center_crop,
                                 .random_flip = recipe.data.random_flip,
                                 .flip_before_crop = flips_before_crop(recipe),
                                 .interpolation = parse_interpolation(recipe.data.image_interpolation_mode)};
  const auto seed = static_cast<uint64_t>(recipe.seed);
  std::vector<ReportPicture> pictures;
  for (const auto& [place, framing] : first_slots(recipe, pack, num_samples)) {
    const int64_t row = place.row;
    const ImageSize& size = framing.cropped;
    const auto planes = at::empty({3, size.height, size.width}, at::kFloat);
    apply_transform(decode_image(pack.read_image(row), pack.file_name(row)), options.interpolation,
                    plan_transform(pack.size(row), framing, options, seed, place.slot, /*class_image=*/false), planes);
    const auto pixels = planes.permute({1, 2, 0}).mul(0.5).add(0.5).mul(255).round().to(at::kByte).contiguous();
    const auto* bytes = pixels.const_data_ptr<uint8_t>();
    const bool own_caption = recipe.task != "dreambooth" || recipe.dreambooth.custom_instance_prompts;
    const std::string& caption = own_caption ? pack.caption(row) : recipe.dreambooth.instance_prompt;
    pictures.push_back({{size.height, size.width, {bytes, bytes + pixels.numel()}}, caption});
  }
  return pictures;
}

std::filesystem::path find_pack(const Recipe& recipe, const std::filesystem::path& run_dir) {
  const std::filesystem::path named = training_pictures(recipe).folder;
  for (const auto& folder : {named, run_dir / "pack"}) {
    if (is_pack(folder)) return folder;
  }
  throw Error(ErrorKind::usage, fmt::format("the pack '{}' isn't there", named.string()));
}

}  // namespace

std::vector<RecordedStep> read_metrics(const std::filesystem::path& path) {
  std::istringstream text(read_file(path));
  std::vector<RecordedStep> steps;
  int64_t number = 0;
  for (std::string line; std::getline(text, line);) {
    ++number;
    const bool unfinished = text.eof();  // no newline behind it: the run was writing it
    try {
      steps.push_back(parse_line(line));
    } catch (const nlohmann::json::exception& error) {
      if (unfinished) break;
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}' line {}: {}", path.string(), number, error.what()));
    }
  }
  return steps;
}

double median(std::vector<double> values) {
  std::erase_if(values, [](double value) { return std::isnan(value); });
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::ranges::nth_element(values, values.begin() + static_cast<int64_t>(values.size() / 2));
  return values[values.size() / 2];
}

std::vector<double> running_mean(const std::vector<double>& values, int64_t window) {
  std::vector<double> sums{0}, counts{0}, means;
  for (const double value : values) {
    sums.push_back(sums.back() + (std::isnan(value) ? 0 : value));
    counts.push_back(counts.back() + (std::isnan(value) ? 0 : 1));
    const size_t end = sums.size() - 1, begin = end - std::min<size_t>(end, window);
    means.push_back((sums[end] - sums[begin]) / (counts[end] - counts[begin]));  // 0 / 0 is NaN
  }
  return means;
}

RunSummary summarise(const std::string& name, const std::vector<RecordedStep>& steps) {
  LORASHARD_CHECK(!steps.empty(), "a summary of no step");
  RunSummary summary;
  summary.name = name;
  summary.steps = steps.back().global_step;
  summary.smoothing_steps = std::max<int64_t>(1, static_cast<int64_t>(steps.size()) / 10);
  std::vector<double> losses, speeds;
  double group_wall_s = 0;
  for (const auto& step : steps) {
    losses.push_back(step.loss);
    speeds.push_back(step.images_per_second);
    summary.skipped_steps += step.skipped;
    if (step.world_size > 0) {
      summary.min_ranks = summary.min_ranks == 0 ? step.world_size : std::min(summary.min_ranks, step.world_size);
      summary.max_ranks = std::max(summary.max_ranks, step.world_size);
    }
    // Each process group counts from zero: a fall is a restart.
    if (step.wall_s < group_wall_s) summary.wall_s += group_wall_s;
    if (!std::isnan(step.wall_s)) group_wall_s = step.wall_s;
  }
  summary.wall_s += group_wall_s;
  summary.last_loss = losses.back();
  summary.final_loss = running_mean(losses, summary.smoothing_steps).back();
  summary.images_per_second = median(speeds);
  return summary;
}

RunSummary write_report(const std::filesystem::path& run_dir, const std::filesystem::path& out) {
  if (!std::filesystem::exists(run_dir / "recipe.toml")) {
    throw Error(ErrorKind::usage, fmt::format("reporting on '{}': it has no recipe.toml", run_dir.string()),
                "give the output_dir of a run");
  }
  const Recipe recipe = load_recipe(run_dir / "recipe.toml");
  const auto steps = read_metrics(run_dir / "metrics.jsonl");
  if (steps.empty()) {
    throw Error(ErrorKind::usage, fmt::format("reporting on '{}': no step is finished yet", run_dir.string()));
  }
  RunSummary summary = summarise(base_name(std::filesystem::absolute(run_dir).lexically_normal()), steps);
  summary.settings = describe(recipe);
  summary.max_train_steps = recipe.train.max_train_steps.value_or(0);

  std::vector<ReportPicture> pictures;
  std::string note;
  try {
    const Pack pack(find_pack(recipe, run_dir));
    summary.num_samples = num_train_samples(recipe, pack);
    pictures = first_pictures(recipe, pack, summary.num_samples);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::internal) throw;
    note = "No pictures: " + error.message();  // a pack that was moved away takes nothing from the curves
    log::warning("{}", note);
  }
  const auto png = encode_png(render_svg(draw_report(summary, steps, pictures, note), kScale));
  write_durably(out, std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
  return summary;
}

}  // namespace lorashard
