#include "trainer/validation.h"

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "data/image_write.h"
#include "data/png_text.h"
#include "dist/agreement.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/sha256.h"
#include "trainer/sample_grid.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kKeyword = "lorashard";
constexpr const char* kEnd = ".png";
constexpr int64_t kEpochsOfTextToImage = 1, kEpochsOfDreamBooth = 50;  // defaults of the reference scripts

std::string_view as_text(const std::vector<uint8_t>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string digest(const at::Tensor& flat) {
  const at::Tensor values = flat.detach().cpu().contiguous();
  return sha256(std::string_view(static_cast<const char*>(values.const_data_ptr()), values.nbytes()));
}

std::string last_name(const std::string& path) { return fs::absolute(path).lexically_normal().filename().string(); }

}  // namespace

bool validation_due(const Recipe& recipe, int64_t num_samples, int64_t step) {
  const Recipe::Validation& v = recipe.validation;
  if (v.validation_prompt.texts.empty() && v.validation_split == 0) return false;
  if (step == 0) return v.at_start;
  if (step == *recipe.train.max_train_steps && v.at_end) return true;
  if (v.validation_steps) return step % *v.validation_steps == 0;
  const int64_t usual = recipe.task == "dreambooth" ? kEpochsOfDreamBooth : kEpochsOfTextToImage;
  const int64_t images = num_samples * v.validation_epochs.value_or(usual), a_step = *recipe.train.total_batch_size;
  return step * a_step / images > (step - 1) * a_step / images;
}

fs::path sample_sheet(const fs::path& output_dir, int64_t step) {
  return output_dir / "samples" / fmt::format("step-{:06}{}", step, kEnd);
}

std::optional<fs::path> newest_sample_sheet(const fs::path& output_dir) {
  std::optional<fs::path> newest;
  int64_t most = -1;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(output_dir / "samples", ignored)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with("step-") || !name.ends_with(kEnd)) continue;
    const std::string digits = name.substr(5, name.size() - 9);
    if (digits.empty() || digits.size() > 18 || digits.find_first_not_of("0123456789") != digits.npos) continue;
    if (const int64_t step = std::stoll(digits); step > most) {
      most = step;
      newest = entry.path();
    }
  }
  return newest;
}

TextToImageOptions validation_options(const Recipe& recipe, const StableDiffusion& base) {
  const Recipe::Validation& v = recipe.validation;
  return checked_options(base, {.prompt = {},
                                .negative_prompt = v.negative_prompt,
                                .height = v.height,
                                .width = v.width,
                                .num_inference_steps = v.num_inference_steps,
                                .guidance_scale = v.guidance_scale,
                                .scheduler = v.scheduler,
                                .use_karras_sigmas = v.use_karras_sigmas,
                                .clip_skip = recipe.model.clip_skip,
                                .seed = static_cast<uint64_t>(v.validation_seed.value_or(recipe.seed))});
}

Validation::Validation(const Recipe& recipe, const StableDiffusion& base, const LoraAdapter& adapter,
                       Communicator& communicator, int64_t num_samples)
    : recipe_(recipe),
      base_(base),
      adapter_(adapter),
      communicator_(communicator),
      num_samples_(num_samples),
      options_(validation_options(recipe, base)) {}

std::vector<PictureJob> Validation::jobs() const {
  std::vector<PictureJob> jobs;
  for (const std::string& prompt : recipe_.validation.validation_prompt.texts) {
    for (int64_t i = 0; i < recipe_.validation.num_validation_images; ++i) {
      jobs.push_back({.options = options_, .number = static_cast<uint64_t>(i)});
      jobs.back().options.prompt = prompt;
    }
  }
  return jobs;
}

std::string Validation::identity(int64_t step) const {
  return nlohmann::ordered_json{{"step", step},
                                {"prompts", recipe_.validation.validation_prompt.texts},
                                {"negative_prompt", options_.negative_prompt},
                                {"num_validation_images", recipe_.validation.num_validation_images},
                                {"seed", options_.seed},
                                {"num_inference_steps", options_.num_inference_steps},
                                {"guidance_scale", options_.guidance_scale},
                                {"scheduler", options_.scheduler},
                                {"use_karras_sigmas", options_.use_karras_sigmas},
                                {"clip_skip", options_.clip_skip},
                                {"height", options_.height},
                                {"width", options_.width},
                                {"adapter_sha256", digest(adapter_.flat_parameters())}}
      .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

bool Validation::run(int64_t step, const Write& write, const Show& show) {
  const bool is_main = communicator_.world().rank == 0;
  bool is_there = false;
  run_agreed(communicator_, "looking for validation pictures", [&] {
    const fs::path sheet = sample_sheet(recipe_.output_dir, step);
    if (!is_main || !fs::is_regular_file(sheet)) return;
    const std::string png = read_file(sheet);
    is_there = png_text({png.begin(), png.end()}, kKeyword) == identity(step);
    if (is_there) write([&] { show(png, /*is_new=*/false); });
  });
  if (any_rank(communicator_, is_there)) return true;

  const std::vector<PictureJob> wanted = jobs();
  std::vector<Image> pictures;
  try {
    make_pictures(
        communicator_, base_, wanted, [&](size_t, Image picture) { pictures.push_back(std::move(picture)); },
        NotFinite::black);
  } catch (const AgreedError& error) {
    if (error.kind() != ErrorKind::stopped) throw;
    return false;
  }
  if (is_main) write([&] { write_pictures(step, wanted, pictures, show); });
  return true;
}

void Validation::write_pictures(int64_t step, const std::vector<PictureJob>& jobs, const std::vector<Image>& pictures,
                                const Show& show) const {
  const Recipe::Validation& v = recipe_.validation;
  const fs::path sheet_path = sample_sheet(recipe_.output_dir, step);
  fs::path folder = sheet_path;
  folder.replace_extension();
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) throw Error(ErrorKind::io, fmt::format("making the folder '{}': {}", folder.string(), error.message()));
  const std::string base = last_name(recipe_.model.pretrained_model_name_or_path), run = last_name(recipe_.output_dir);

  SampleGrid grid;
  grid.title = fmt::format("Step {} of {}", step, *recipe_.train.max_train_steps);
  grid.origin = step == 0 ? fmt::format("{}: the base '{}' alone", run, base) : fmt::format("{} on '{}'", run, base);
  grid.settings = {scheduler_in_words(options_), fmt::format("{} steps", options_.num_inference_steps),
                   options_.guidance_scale > 1 ? fmt::format("guidance {:g}", options_.guidance_scale) : "no guidance",
                   fmt::format("seed {}", options_.seed), fmt::format("{}x{}", options_.width, options_.height)};
  if (step > 0) {
    grid.settings.push_back(fmt::format("LoRA rank {}, alpha {:g}, scale 1", recipe_.lora.rank,
                                        recipe_.lora.lora_alpha.value_or(static_cast<double>(recipe_.lora.rank))));
  }
  if (!options_.negative_prompt.empty()) grid.settings.push_back("negative: " + options_.negative_prompt);
  const auto count = static_cast<size_t>(v.num_validation_images);
  for (size_t i = 0; i < pictures.size(); ++i) {
    if (i % count == 0) grid.rows.push_back({jobs[i].options.prompt, {}, {}});
    grid.rows.back().pictures.push_back(pictures[i]);
    grid.rows.back().labels.push_back(fmt::format("#{}", jobs[i].number));
    const auto png = add_png_text(encode_png(pictures[i]), "parameters",
                                  picture_parameters(jobs[i], base, {fmt::format("{} step {}", run, step)}));
    write_durably(folder / fmt::format("prompt-{}-{}.png", i / count, i % count), as_text(png));
  }
  const std::string png(as_text(add_png_text(encode_png(draw_sample_grid(grid)), kKeyword, identity(step))));
  show(png, /*is_new=*/true);
  write_durably(sheet_path, png);  // last: where it is, all is
  log::info("step {}: {} pictures in '{}'", step, pictures.size(), sheet_path.string());
}

}  // namespace lorashard
