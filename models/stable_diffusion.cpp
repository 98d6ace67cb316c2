#include "models/stable_diffusion.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <utility>
#include <vector>

#include "dist/error.h"
#include "dist/sha256.h"
#include "models/diffusers_folder.h"
#include "models/single_file.h"
#include "models/state_dict.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

bool looks_like_hub_id(const std::string& name) {
  const size_t slash = name.find('/');
  return slash != name.npos && slash > 0 && slash + 1 < name.size() && name.find('/', slash + 1) == name.npos &&
         name[0] != '.' && name[0] != '~';
}

void require_folder(const fs::path& folder) {
  if (fs::is_directory(folder)) return;
  const std::string name = folder.string();
  const std::string doing = fmt::format("loading base model '{}': ", name);
  throw Error(
      ErrorKind::usage, doing + "there is no such folder",
      looks_like_hub_id(name)
          ? fmt::format("nothing is downloaded by batch jobs, which are often offline: run `hf download {} --local-dir "
                        "DIR` once and give DIR",
                        name)
          : "give a folder in diffusers layout; for trials: lorashard init-base --preset tiny-sd15 DIR");
}

/// The parts must fit each other; each alone was checked when it was read.
void check_parts(const fs::path& path, const BaseConfigs& configs) {
  const auto& [unet, vae, text, text_2, scheduler, pad_token] = configs;
  const auto require_equal = [&](const char* left, int64_t a, const char* right, int64_t b) {
    if (a == b) return;
    throw Error(ErrorKind::bad_data,
                fmt::format("loading base model '{}': {} is {}, but {} is {}", path.string(), left, a, right, b));
  };
  require_equal("the UNet's in_channels", unet.in_channels, "the VAE's latent_channels", vae.latent_channels);
  require_equal("the UNet's out_channels", unet.out_channels, "the VAE's latent_channels", vae.latent_channels);
  if (!text_2) {
    require_equal("the UNet's cross_attention_dim", unet.cross_attention_dim, "the text encoder's hidden_size",
                  text.hidden_size);
    return;
  }
  if (!text_2->with_projection) {
    throw Error(ErrorKind::bad_data,
                fmt::format("loading base model '{}': its text_encoder_2 has no text_projection", path.string()),
                "text_encoder_2/config.json names CLIPTextModelWithProjection in architectures");
  }
  require_equal("the UNet's cross_attention_dim", unet.cross_attention_dim, "the sum of the text encoders' hidden_size",
                text.hidden_size + text_2->hidden_size);
  // The refiner has five time ids, the base six.
  require_equal("the UNet's projection_class_embeddings_input_dim", unet.projection_class_embeddings_input_dim,
                "text_encoder_2's projection_dim + 6 * addition_time_embed_dim",
                text_2->projection_dim + 6 * unet.addition_time_embed_dim);
}

/// EDM's formulation has no betas, and no way to predict the latents themselves.
void check_edm(const fs::path& path, const DDPMSchedulerConfig& scheduler) {
  if (!scheduler.edm) return;
  const char* const key = scheduler.rescale_betas_zero_snr        ? "model.rescale_betas_zero_snr"
                          : scheduler.prediction_type == "sample" ? "model.prediction_type"
                                                                  : nullptr;
  if (key == nullptr) return;
  throw Error(ErrorKind::usage,
              fmt::format("loading base model '{}': '{}' doesn't go with its EDMEulerScheduler", path.string(), key), "leave the key out");
}

/// SHA-256 of each file, by as many threads as help: a full-size base has 4 GB of them.
std::vector<std::string> hash_files(const std::vector<fs::path>& files) {
  std::vector<std::string> hashes(files.size());
  std::vector<std::exception_ptr> faults(files.size());
  std::atomic<size_t> next{0};
  const auto work = [&] {
    for (size_t i = next++; i < files.size(); i = next++) {
      try {
        hashes[i] = sha256_file(files[i]);
      } catch (...) {
        faults[i] = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> threads;
    const size_t count = std::clamp<size_t>(std::thread::hardware_concurrency(), 1, 8);
    for (size_t i = 1; i < std::min(count, files.size()); ++i) threads.emplace_back(work);
    work();
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
  return hashes;
}

BaseParts read_parts(const fs::path& path, const StableDiffusionOptions& options) {
  if (!names_single_file(path)) require_folder(path);
  BaseParts parts = names_single_file(path) ? read_single_file(path, options) : read_diffusers_folder(path, options);
  if (names_single_file(options.vae_folder)) {
    read_single_file_vae(options.vae_folder, parts);
  } else if (!options.vae_folder.empty()) {
    require_folder(options.vae_folder);
    read_vae_folder(options.vae_folder, options.variant, parts);
  }
  return parts;
}

}  // namespace

void require_clip_skip(const StableDiffusion& base, int64_t clip_skip) {
  int64_t layers = base.text_encoder->config().num_hidden_layers;
  if (base.is_sdxl()) layers = std::min(layers, base.text_encoder_2->config().num_hidden_layers);
  if (clip_skip >= 0 && clip_skip < layers) return;
  throw Error(ErrorKind::usage,
              fmt::format("reading the text encoder of base model '{}': clip_skip is {}, expected 0 to {}: it has {} layers",
                          base.folder.string(), clip_skip, layers - 1, layers),
              "clip_skip counts the layers that are left out, as diffusers does: kohya's and the web UIs' \"2\" is 1 here");
}

StableDiffusion load_stable_diffusion(const fs::path& path, const StableDiffusionOptions& options) {
  const BaseParts parts = read_parts(path, options);
  BaseConfigs configs = parts.configs;
  if (!options.prediction_type.empty()) configs.scheduler.prediction_type = options.prediction_type;
  if (options.rescale_betas_zero_snr) configs.scheduler.rescale_betas_zero_snr = true;
  check_edm(path, configs.scheduler);
  check_parts(path, configs);

  StableDiffusion base;
  base.folder = path;
  base.dtype = options.dtype;
  // SDXL's VAE needs fp32, as its script has it; the others overflow in fp16 alone.
  const bool is_vae_upcast = configs.vae.force_upcast && (configs.is_sdxl() || options.dtype == at::kHalf);
  base.vae_dtype = is_vae_upcast ? at::kFloat : options.dtype;
  base.device = options.device;
  base.noise_scheduler = std::make_shared<DDPMScheduler>(configs.scheduler);
  base.noise_scheduler->to(options.device);
  if (configs.scheduler.edm) {
    base.edm_schedule = std::make_shared<EDMSchedule>(configs.scheduler);
    base.edm_schedule->to(options.device);
  }

  const auto text_encoder = [&](const CLIPTextConfig& config, const Weights& weights) {
    auto model = std::make_shared<CLIPTextModel>(config);
    load_state_dict(*model, weights.state, weights.source, options.dtype, {}, options.device);
    return model;
  };
  base.tokenizer = make_tokenizer(parts.tokenizer);
  base.text_encoder = text_encoder(configs.text_encoder, parts.text_encoder);
  if (configs.text_encoder_2) {
    base.tokenizer_2 = make_tokenizer(parts.tokenizer_2);
    base.text_encoder_2 = text_encoder(*configs.text_encoder_2, parts.text_encoder_2);
  }
  base.clip_skip = options.clip_skip;
  require_clip_skip(base, base.clip_skip);
  base.vae = std::make_shared<AutoencoderKL>(configs.vae);
  load_state_dict(*base.vae, parts.vae.state, parts.vae.source, base.vae_dtype, {}, options.device);
  base.unet = std::make_shared<UNet2DConditionModel>(configs.unet);
  load_state_dict(*base.unet, parts.unet.state, parts.unet.source, options.dtype, {}, options.device);
  return base;
}

std::string base_model_hash(const fs::path& path, const StableDiffusionOptions& options) {
  if (!names_single_file(path)) require_folder(path);
  std::vector<NamedFile> files =
      names_single_file(path) ? single_file_files(path, options) : diffusers_folder_files(path, options);
  if (names_single_file(options.vae_folder)) {
    files.emplace_back("vae/checkpoint", options.vae_folder);
    const fs::path config = path / "vae" / "config.json";
    if (!names_single_file(path) && fs::is_regular_file(config)) files.emplace_back("vae/config.json", config);
  } else if (!options.vae_folder.empty()) {
    require_folder(options.vae_folder);
    for (NamedFile& file : vae_folder_files(options.vae_folder, options.variant)) files.push_back(std::move(file));
  }
  std::sort(files.begin(), files.end());

  std::vector<fs::path> places;
  for (const auto& [name, place] : files) places.push_back(place);
  const std::vector<std::string> hashes = hash_files(places);
  std::string listing;
  for (size_t i = 0; i < files.size(); ++i) listing += fmt::format("{}  {}\n", hashes[i], files[i].first);
  return sha256(listing);
}

}  // namespace lorashard
