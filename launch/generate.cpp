// lorashard generate: pictures of a prompt, from one base and the adapters it is given.
#include <ATen/Parallel.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "data/image_write.h"
#include "data/png_text.h"
#include "dist/agreement.h"
#include "dist/compute_device.h"
#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "launch/as_rank.h"
#include "launch/base_arguments.h"
#include "launch/commands.h"
#include "models/adapter_apply.h"
#include "models/adapter_file.h"
#include "models/sampling_scheduler.h"
#include "trainer/picture_maker.h"
#include "trainer/sample_grid.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct Options {
  BaseArguments base;
  std::vector<std::string> loras;
  TextToImageOptions picture;
  std::string out, device = "auto";
  uint64_t first_image = 0;
  int64_t num_images = 1, threads = 0;
  bool json = false;
};

/// FILE.png of one picture; FILE-3.png of picture 3 of several, beside the sheet FILE.png.
fs::path file_of(const Options& options, uint64_t number) {
  const fs::path out = options.out;
  if (options.num_images == 1) return out;
  return out.parent_path() / fmt::format("{}-{}{}", out.stem().string(), number, out.extension().string());
}

void require_out(const Options& options) {
  const fs::path out = options.out, folder = out.has_parent_path() ? out.parent_path() : fs::path(".");
  if (out.extension() != ".png") {
    throw Error(ErrorKind::usage, fmt::format("--out '{}': expected a name that ends with .png", options.out));
  }
  if (!fs::is_directory(folder))
    throw Error(ErrorKind::usage, fmt::format("--out '{}': there is no folder '{}'", options.out, folder.string()));
}

void write_png(const fs::path& path, const std::vector<uint8_t>& png) {
  write_durably(path, std::string_view(reinterpret_cast<const char*>(png.data()), png.size()));
}

/// All pictures with their settings, for those who look at them side by side.
std::vector<uint8_t> sheet(const std::vector<PictureJob>& jobs, const std::vector<Image>& pictures,
                           const std::string& model, const std::vector<std::string>& adapters) {
  const TextToImageOptions& o = jobs.front().options;
  SampleGrid grid;
  grid.title = adapters.empty() ? model : fmt::format("{}", fmt::join(adapters, " + "));
  grid.origin = adapters.empty() ? "no adapter" : "on " + model;
  grid.settings = {scheduler_in_words(o), fmt::format("{} steps", o.num_inference_steps),
                   o.guidance_scale > 1 ? fmt::format("guidance {:g}", o.guidance_scale) : "no guidance",
                   fmt::format("seed {}", o.seed), fmt::format("{}x{}", o.width, o.height)};
  if (!o.negative_prompt.empty()) grid.settings.push_back("negative: " + o.negative_prompt);
  grid.rows.push_back({o.prompt, pictures, {}});
  for (const PictureJob& job : jobs) grid.rows[0].labels.push_back(fmt::format("#{}", job.number));
  return add_png_text(encode_png(draw_sample_grid(grid)), "parameters",
                      picture_parameters(jobs.front(), model, adapters));
}

void print_json(const Options& options, const std::vector<PictureJob>& jobs, const std::vector<LoraArgument>& loras) {
  const TextToImageOptions& o = jobs.front().options;
  Json files = Json::array(), adapters = Json::array();
  for (const PictureJob& job : jobs)
    files.push_back({{"number", job.number}, {"file", file_of(options, job.number).string()}});
  for (const LoraArgument& lora : loras) adapters.push_back({{"file", lora.file.string()}, {"scale", lora.scale}});
  const Json out = {{"out", options.out},
                    {"pictures", files},
                    {"prompt", o.prompt},
                    {"negative_prompt", o.negative_prompt},
                    {"seed", o.seed},
                    {"scheduler", o.scheduler},
                    {"use_karras_sigmas", o.use_karras_sigmas},
                    {"clip_skip", o.clip_skip},
                    {"num_inference_steps", o.num_inference_steps},
                    {"guidance_scale", o.guidance_scale},
                    {"height", o.height},
                    {"width", o.width},
                    {"loras", adapters}};
  std::cout << out.dump(2, ' ', false, Json::error_handler_t::replace) << '\n';
}

void generate(const Options& options, Communicator& communicator) {
  const World& world = communicator.world();
  const bool is_main = world.rank == 0;
  GpuRank gpu{.communicator = nullptr, .device = at::kCPU};
  if (choose_device(communicator, options.device) == "cuda") gpu = take_gpu(communicator, {}, /*deterministic=*/true);
  std::vector<LoraArgument> loras;
  StableDiffusion base;
  TextToImageOptions picture;
  run_agreed(communicator, "loading the base model", [&] {
    require_out(options);
    loras = parse_lora_arguments(options.loras);
    base = load_base(options.base, gpu.device);
    picture = checked_options(base, options.picture);
    for (const LoraArgument& lora : loras) apply_adapter(base, read_adapter(lora.file, module_names(base)), lora.scale);
  });
  const int64_t cores = std::max(1U, std::thread::hardware_concurrency());
  const int64_t threads = options.threads > 0 ? options.threads : std::max<int64_t>(1, cores / world.local_world_size);
  at::set_num_threads(static_cast<int>(threads));

  std::vector<PictureJob> jobs;
  for (int64_t i = 0; i < options.num_images; ++i)
    jobs.push_back({.options = picture, .number = options.first_image + static_cast<uint64_t>(i)});
  const std::string model = fs::absolute(options.base.path).lexically_normal().filename().string();
  const std::vector<std::string> adapters = in_words(loras);
  std::vector<Image> pictures;
  make_pictures(communicator, base, jobs, [&](size_t i, Image made) {
    const auto text = picture_parameters(jobs[i], model, adapters);
    write_png(file_of(options, jobs[i].number), add_png_text(encode_png(made), "parameters", text));
    if (options.num_images > 1) pictures.push_back(std::move(made));
  });
  run_agreed(communicator, "writing the pictures", [&] {
    if (!is_main) return;
    if (options.num_images > 1) write_png(options.out, sheet(jobs, pictures, model, adapters));
    if (options.json) print_json(options, jobs, loras);
    log::info("{} in '{}'", options.num_images == 1 ? "the picture" : fmt::format("{} pictures", options.num_images),
              options.out);
  });
}

}  // namespace

void add_generate_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  TextToImageOptions& picture = options->picture;
  CLI::App* command = app.add_subcommand("generate", "make pictures of a prompt with a base model and adapters");
  add_base_arguments(*command, options->base);
  add_lora_argument(*command, options->loras);
  command->add_option("--prompt", picture.prompt, "what the pictures show")->required();
  command->add_option("--negative-prompt", picture.negative_prompt, "what they are not to show");
  command->add_option("--out", options->out, "FILE.png; with --num-images also FILE-0.png, FILE-1.png, ...")
      ->required();
  command->add_option("--num-inference-steps", picture.num_inference_steps, "steps of the scheduler [25]");
  command->add_option("--guidance-scale", picture.guidance_scale, "classifier-free guidance; 1 or less: none [7.5]");
  command->add_option("--scheduler", picture.scheduler, "dpmsolver++, ddim, euler or pndm [dpmsolver++]");
  command->add_flag("--karras", picture.use_karras_sigmas, "Karras' noise levels (dpmsolver++, euler)");
  command->add_option("--clip-skip", picture.clip_skip,
                      "leave out this many of the text encoders' last layers for the prompt, as diffusers counts: the web UIs' 2 is 1 [0]")
      ->check(CLI::Range(0, 1000));
  command->add_option("--seed", picture.seed, "seed of the noise [0]");
  command->add_option("--height", picture.height, "pixels [what the base was made for]")->check(CLI::NonNegativeNumber);
  command->add_option("--width", picture.width, "pixels [what the base was made for]")->check(CLI::NonNegativeNumber);
  command->add_option("--num-images", options->num_images, "how many pictures of the seed [1]")
      ->check(CLI::Range(1, 10000));
  command->add_option("--first-image", options->first_image,
                      "number of the first: --seed 7 --first-image 3 is #3 of seed 7 [0]");
  command->add_option("--threads", options->threads, "threads of each rank [the cores of the machine]")
      ->check(CLI::Range(0, 1024));
  command->add_option("--device", options->device, "auto (a GPU for each rank, where they can be had), cpu or cuda [auto]")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_flag("--json", options->json, "what was made, as JSON on stdout");
  command->footer(
      "One picture is FILE.png. Several are FILE-0.png, FILE-1.png, ..., and FILE.png shows them side by side. Each "
      "PNG\n"
      "says in its 'parameters' text how it was made. The same command gives the same pictures; under mpirun the "
      "ranks\n"
      "share them:\n"
      "  lorashard generate --base BASE --lora runs/pokemon:0.8 --prompt 'a cat' "
      "--out cat.png\n"
      "  mpirun -n 4 lorashard generate --base BASE --prompt 'a cat' --num-images 16 --out cats.png");
  command->callback([options] {
    run_as_rank([&](Communicator& communicator, std::unique_ptr<Health>& health) {
      health = std::make_unique<Health>(communicator, HealthOptions{});
      generate(*options, communicator);
    });
  });
}

}  // namespace lorashard
