// lorashard doctor: what this machine offers, and whether a recipe could start on it. Offline; trains and keeps
// nothing.
#include <torch/version.h>

#include <filesystem>
#include <functional>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "data/parquet_library.h"
#include "dist/compute_device.h"
#include "dist/cuda_library.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/machine.h"
#include "dist/world.h"
#include "launch/commands.h"
#include "trainer/class_pictures.h"
#include "trainer/first_use_pack.h"
#include "trainer/lora_setup.h"
#include "trainer/parameter_groups.h"
#include "trainer/preflight.h"
#include "trainer/recipe_options.h"
#include "trainer/resume.h"
#include "trainer/run_lease.h"
#include "trainer/validation.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string gigabytes(int64_t bytes) { return fmt::format("{:.1f} GB", static_cast<double>(bytes) / 1e9); }

/// The lines of the report, said as they are found.
class Report {
 public:
  explicit Report(bool json) : json_(json) {}

  void ok(const std::string& check, const std::string& message) { add("OK", check, message, "", 0); }
  void warning(const std::string& check, const std::string& message, const std::string& hint) {
    add("warning", check, message, hint, 0);
  }
  /// OK with what `look` returns, or FAILED with what it throws. False when it failed.
  bool check(const std::string& name, const std::function<std::string()>& look) {
    try {
      ok(name, look());
      return true;
    } catch (const Error& error) {
      add("FAILED", name, error.message(), error.hint(), exit_code(error.kind()));
    } catch (const std::exception& error) {
      add("FAILED", name, describe(error), "", exit_code(ErrorKind::internal));
    }
    return false;
  }

  /// Of the first failure; 0 without one.
  int code() const { return code_; }
  Json to_json() const { return {{"exit_code", code_}, {"checks", checks_}}; }

 private:
  void add(const char* status, const std::string& check, const std::string& message, const std::string& hint,
           int code) {
    if (code_ == 0) code_ = code;
    if (!json_) log::info("{:<8} {}: {}{}{}", status, check, message, hint.empty() ? "" : "\n         hint: ", hint);
    Json line = {{"check", check}, {"status", status}, {"message", message}};
    if (!hint.empty()) line["hint"] = hint;
    if (code != 0) line["exit_code"] = code;
    checks_.push_back(std::move(line));
  }

  bool json_;
  int code_ = 0;
  Json checks_ = Json::array();
};

void report_cuda(Report& report) {
  const CudaLibrary& cuda = cuda_library();
  if (!cuda.loaded()) {
    if (!fs::exists(cuda.path())) return report.ok("CUDA", "not in this build, which trains on CPUs");
    return report.warning("CUDA", cuda.why_not(), cuda.hint());
  }
  const CudaDevices found = cuda.devices();
  std::string devices;
  for (const CudaDevice& device : found.devices) {
    devices += fmt::format("{}{} ({}, compute {}.{})", devices.empty() ? "" : ", ", device.name,
                           gigabytes(device.memory_bytes), device.compute_major, device.compute_minor);
  }
  if (devices.empty()) devices = "no device: " + found.why_none;
  report.ok("CUDA", fmt::format("{}; {}", cuda.versions(), devices));
}

void report_parquet(Report& report) {
  const ParquetLibrary& parquet = parquet_library();
  report.ok("parquet", parquet.why_not().empty() ? parquet.version() : "can't be packed here: " + parquet.why_not());
}

void report_machine(Report& report, const Machine& machine, const World& world) {
  report.ok("program", fmt::format("lorashard {}, LibTorch {}", LORASHARD_VERSION, TORCH_VERSION));
  report.ok("processor", fmt::format("{}, {}, {} {}", machine.processor, machine.instruction_set, machine.cores,
                                     machine.cores == 1 ? "core" : "cores"));
  report.ok("memory",
            fmt::format("{}, {} available", gigabytes(machine.memory_bytes), gigabytes(machine.available_bytes)));
  const std::string place = world.world_size > 1
                                ? fmt::format("{} ranks, {} on this host", world.world_size, world.local_world_size)
                                : std::string("one process");
  if (machine.mpirun.empty()) {
    report.warning("MPI", fmt::format("{}, {}, but no mpirun in PATH", machine.mpi, place),
                   "'lorashard launch' needs it: apt-get install openmpi-bin");
  } else {
    report.ok("MPI", fmt::format("{}, {}, {}", machine.mpi, place, machine.mpirun));
  }
  report_cuda(report);
  report_parquet(report);
}

/// Takes the folder as a run would, and leaves it as it was.
std::string look_at_output_dir(const fs::path& output_dir) {
  std::vector<fs::path> made;  // by us: innermost first
  std::error_code ignored;
  for (fs::path folder = fs::absolute(output_dir).lexically_normal(); !fs::exists(folder, ignored);
       folder = folder.parent_path()) {
    made.push_back(folder);
  }
  struct Removal {
    const std::vector<fs::path>& folders;
    ~Removal() {
      std::error_code failed;  // a folder that isn't empty stays
      for (const fs::path& folder : folders) fs::remove(folder, failed);
    }
  } removal{made};
  prepare_output_dir(output_dir);
  const RunLease lease(output_dir);
  return fmt::format("'{}' can be written{}", output_dir.string(), made.empty() ? "" : " (it would be made)");
}

/// What checks that come later need of those before.
struct Findings {
  Recipe recipe;
  std::unique_ptr<Pack> pack, class_pack;
  std::string base_hash;
  int64_t images_per_epoch = 0;
  std::optional<fs::path> checkpoint;
  std::optional<TrainingState> saved;
  StableDiffusion base;
};

std::string look_at_data(Findings& findings) {
  const Recipe& recipe = findings.recipe;
  const PictureSource source = training_pictures(recipe);
  fs::path folder = source.folder;
  if (!is_packed(source)) {
    if (!is_pack(source.pack)) {
      const ImageFolder pictures = list_pictures(folder, source.options.folder);
      const int64_t count = static_cast<int64_t>(pictures.images.size()), limit = recipe.data.max_train_samples;
      findings.images_per_epoch = limit > 0 ? std::min(count, limit) : count;
      return fmt::format(
          "'{}': {} pictures, {} left out; packed at the first start, which decodes them all{}", folder.string(), count,
          pictures.left_out.size(),
          recipe.data.enable_bucket ? "; their buckets, and so the length of an epoch, are known then" : "");
    }
    pack_on_first_use(source);  // there already: checks that it is of this folder
    folder = source.pack;
  }
  findings.pack = std::make_unique<Pack>(folder);
  const int64_t num_samples = num_train_samples(recipe, *findings.pack);
  const std::vector<Bucket> buckets = train_buckets(recipe, *findings.pack);
  findings.images_per_epoch = images_per_epoch(recipe, num_samples, buckets);
  return fmt::format("'{}': a pack of {} pictures, {} trained on{}", folder.string(), findings.pack->num_samples(),
                     num_samples, buckets.empty() ? "" : "; buckets: " + describe(buckets));
}

/// The pack alone: what a folder holds is known once it is packed.
std::string look_at_captions(const Findings& findings) {
  require_custom_prompts(findings.recipe, *findings.pack);
  return "as the recipe wants them";
}

std::string look_at_loss(const Findings& findings) {
  const DDPMSchedulerConfig& scheduler = findings.base.noise_scheduler->config();
  loss_options(findings.recipe, scheduler);
  const TimestepDistribution check(timestep_options(findings.recipe, scheduler.num_train_timesteps));
  return fmt::format("{}, {} timesteps", scheduler.edm ? "EDM" : scheduler.prediction_type, scheduler.num_train_timesteps);
}

/// Changes the base's layers, so that it comes last.
std::string look_at_adapter(Findings& findings) {
  Recipe& recipe = findings.recipe;
  LoraAdapter adapter;
  make_adapter(recipe, findings.base, adapter);
  if (!recipe.lora.lora_weights.empty() && !findings.saved) start_from_adapter(recipe, findings.base, adapter);
  const size_t groups = parameter_groups(adapter, recipe.optimizer).size();
  return fmt::format("{} layers, {} parameters, {} {} of learning rate and weight decay", adapter.modules().size(),
                     adapter.num_parameters(), groups, groups == 1 ? "group" : "groups");
}

std::string look_at_validation(const Findings& findings) {
  const TextToImageOptions options = validation_options(findings.recipe, findings.base);
  return fmt::format("pictures of {} x {} by {} in {} steps", options.width, options.height, options.scheduler, options.num_inference_steps);
}

const std::string& base_hash_of(Findings& findings) {
  if (findings.base_hash.empty()) {
    findings.base_hash = base_model_hash(findings.recipe.model.pretrained_model_name_or_path, base_options(findings.recipe));
  }
  return findings.base_hash;
}

/// Needs the base model: it makes the pictures that are missing.
std::string look_at_class_pictures(Findings& findings) {
  const Recipe& recipe = findings.recipe;
  const PictureSource source = class_pictures(recipe);
  for (const fs::path& folder : {source.folder, source.pack}) {
    if (!is_pack(folder)) continue;
    findings.class_pack = std::make_unique<Pack>(folder);
    require_class_images(recipe, *findings.class_pack);
    return fmt::format("'{}': a pack of {} pictures, {} used", folder.string(), findings.class_pack->num_samples(),
                       recipe.dreambooth.num_class_images);
  }
  const ClassPicturePlan plan = plan_class_pictures(recipe, findings.base, base_hash_of(findings));
  return fmt::format("'{}': {} given, {} made before, {} made by the base model at the first start", plan.folder.string(),
                     plan.num_given, plan.num_made, plan.missing.size());
}

std::string look_at_checkpoints(Findings& findings) {
  findings.checkpoint = checkpoint_to_resume(findings.recipe);
  if (!findings.checkpoint) return "none: the run would start at step 0";
  findings.saved = read_checkpoint(*findings.checkpoint);
  return fmt::format("the run would go on from '{}' at step {}", findings.checkpoint->string(),
                     findings.saved->global_step);
}

std::string look_at_steps(Findings& findings, int ranks, int local_ranks) {
  Recipe& recipe = findings.recipe;
  if (findings.saved) adopt_resolved_values(recipe, *findings.saved);
  resolve_recipe(recipe, ranks, local_ranks, findings.images_per_epoch);
  resolve_lora_weights(recipe);
  const int64_t num_micro_batches = micro_batches_of(recipe);
  return fmt::format(
      "{} steps of {} micro-batches of {} on {} {} with {} {} each{}", *recipe.train.max_train_steps, num_micro_batches,
      recipe.train.train_batch_size, ranks, ranks == 1 ? "rank" : "ranks", recipe.distributed.threads_per_rank,
      recipe.distributed.threads_per_rank == 1 ? "thread" : "threads",
      ranks > num_micro_batches ? fmt::format("; {} ranks would have nothing to do", ranks - num_micro_batches) : "");
}

void look_at_base(Report& report, Findings& findings, const Machine& machine, int local_ranks) {
  const Recipe& recipe = findings.recipe;
  int64_t parameters = 0, bytes = 0;
  const bool loaded = report.check("base model", [&] {
    findings.base = load_stable_diffusion(recipe.model.pretrained_model_name_or_path, base_options(recipe));
    const auto count = [&](const torch::nn::Module& module) {
      for (const at::Tensor& weight : module.parameters()) {
        parameters += weight.numel();
        bytes += static_cast<int64_t>(weight.nbytes());
      }
    };
    count(*findings.base.unet);
    count(*findings.base.vae);
    count(*findings.base.text_encoder);
    if (findings.base.is_sdxl()) count(*findings.base.text_encoder_2);
    return fmt::format("'{}': {:.1f} million parameters, {} in each rank; activations come on top",
                       recipe.model.pretrained_model_name_or_path, static_cast<double>(parameters) / 1e6,
                       gigabytes(bytes));
  });
  if (!loaded) return;
  if (machine.memory_bytes > 0 && bytes * local_ranks > machine.memory_bytes) {
    report.warning("base model",
                   fmt::format("{} ranks would hold {} of this machine's {}", local_ranks,
                               gigabytes(bytes * local_ranks), gigabytes(machine.memory_bytes)),
                   "start fewer ranks here, or set mixed_precision = \"bf16\"");
  }
  report.check("resolution", [&] {
    require_resolution_fits(recipe, findings.base);
    return fmt::format("{} fits the base model",
                       recipe.data.enable_bucket ? fmt::format("bucket_reso_steps = {}", recipe.data.bucket_reso_steps)
                                                 : std::to_string(recipe.data.resolution));
  });
}

/// Also puts what a start would choose in place of "auto", as a start does.
std::string look_at_device(Recipe& recipe) {
  const std::string wanted = recipe.distributed.device;
  const std::string precision = recipe.train.mixed_precision == "no" ? "fp32" : recipe.train.mixed_precision;
  const std::string why = wanted == "cpu" ? "the recipe says so" : why_no_gpu();
  if (why.empty()) {
    recipe.distributed.device = "cuda";
    return fmt::format("cuda, {}", precision);
  }
  if (wanted == "cuda") {
    throw Error(ErrorKind::usage, fmt::format("taking a GPU for each rank, as device \"cuda\" asks: {}", why),
                "distributed.device = \"cpu\" trains without a GPU");
  }
  recipe.distributed.device = "cpu";
  return fmt::format("cpu ({}), {}", why, precision);
}

/// In the order of a start; what needs a check that failed is left out.
void report_recipe(Report& report, const std::string& path, const std::vector<std::string>& overrides,
                   const Machine& machine, int ranks, int local_ranks) {
  Findings findings;
  const bool read = report.check("recipe", [&] {
    findings.recipe = load_recipe(path, overrides);
    return fmt::format("'{}' reads well", path);
  });
  if (!read) return;
  report.check("device", [&] { return look_at_device(findings.recipe); });
  const bool writable = report.check("output_dir", [&] { return look_at_output_dir(findings.recipe.output_dir); });
  const bool has_data = report.check("data", [&] { return look_at_data(findings); });
  const bool knows_start = writable && report.check("checkpoint", [&] { return look_at_checkpoints(findings); });
  const bool resolved =
      has_data && knows_start && report.check("steps", [&] { return look_at_steps(findings, ranks, local_ranks); });
  look_at_base(report, findings, machine, local_ranks);
  if (findings.pack) report.check("captions", [&] { return look_at_captions(findings); });
  if (findings.base.unet) {
    report.check("loss", [&] { return look_at_loss(findings); });
    if (!findings.recipe.validation.validation_prompt.texts.empty()) report.check("validation", [&] { return look_at_validation(findings); });
  }
  const bool has_class_images =
      !findings.recipe.dreambooth.with_prior_preservation ||
      (findings.base.unet && report.check("class pictures", [&] { return look_at_class_pictures(findings); }));
  if (resolved && has_class_images && findings.saved && findings.pack && findings.base.unet) {
    report.check("resume", [&] {
      require_same_run(findings.recipe, data_hash(*findings.pack, findings.class_pack.get()), base_hash_of(findings),
                       *findings.saved, findings.checkpoint->string());
      bool same_processor = false;
      if (findings.recipe.distributed.device == "cpu") {  // the GPU that a rank gets is not known here
        const std::string here = describe_arithmetic_of(at::kCPU);
        require_same_hardware(findings.recipe, here, *findings.saved, findings.checkpoint->string());
        same_processor = here == findings.saved->arithmetic;
      }
      return fmt::format("recipe, data{} base model are those of the checkpoint", same_processor ? ", processor and" : " and");
    });
  }
  if (!resolved || !findings.base.unet) return;
  report.check("adapter", [&] { return look_at_adapter(findings); });
}

struct Options {
  std::string recipe;
  std::vector<std::string> overrides;
  int ranks = 0;
  bool json = false;
};

/// Under mpirun every rank takes part in starting MPI, which proves it; rank 0 looks and speaks.
int examine(const Options& options) {
  const MpiSession session(nullptr, nullptr);
  const World& world = session.world();
  log::set_rank(world.rank, world.world_size);
  if (world.rank != 0) return 0;
  const Machine machine = this_machine();
  Report report(options.json);
  report_machine(report, machine, world);
  if (!options.recipe.empty()) {
    const int ranks = options.ranks > 0 ? options.ranks : world.world_size;
    report_recipe(report, options.recipe, options.overrides, machine, ranks,
                  options.ranks > 0 ? ranks : world.local_world_size);
  }
  if (options.json) std::cout << report.to_json().dump(2) << '\n';
  return report.code();
}

}  // namespace

void add_doctor_command(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("doctor", "what this machine offers, and whether a recipe could start on it");
  command->add_option("recipe", options->recipe, "TOML file to check against this machine");
  command
      ->add_option("--set", options->overrides,
                   "table.key=value: overrides a key of the recipe; may be given several times")
      ->allow_extra_args(false);
  command->add_option("--ranks", options->ranks, "check for this many ranks on this machine [1, or those of mpirun]")
      ->check(CLI::PositiveNumber);
  command->add_flag("--json", options->json, "the report as JSON on stdout");
  command->footer(
      "Exit code 0 when a run could start, else that of the first FAILED line, as the run itself would end. Nothing "
      "is\n"
      "downloaded, trained or kept; the base model is loaded once, as a rank would.");
  command->callback([options] {
    const int code = examine(*options);
    if (code != 0) throw Exit{code};
  });
}

}  // namespace lorashard
