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
#include "models/state_dict.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr const char* kDiffusersStem = "diffusion_pytorch_model";
constexpr const char* kTransformersStem = "model";

bool looks_like_hub_id(const std::string& name) {
  const size_t slash = name.find('/');
  return slash != name.npos && slash > 0 && slash + 1 < name.size() && name.find('/', slash + 1) == name.npos &&
         name[0] != '.' && name[0] != '~';
}

void require_folder(const fs::path& folder) {
  if (fs::is_directory(folder)) return;
  const std::string name = folder.string();
  const std::string doing = fmt::format("loading base model '{}': ", name);
  if (fs::exists(folder)) {
    throw Error(
        ErrorKind::usage, doing + "it is a file, not a folder in diffusers layout",
        "single-file checkpoints: save them with StableDiffusionPipeline.from_single_file(...).save_pretrained(...)");
  }
  throw Error(
      ErrorKind::usage, doing + "there is no such folder",
      looks_like_hub_id(name)
          ? fmt::format("nothing is downloaded by batch jobs, which are often offline: run `hf download {} --local-dir "
                        "DIR` once and give DIR",
                        name)
          : "give a folder in diffusers layout; for trials: lorashard init-base --preset tiny-sd15 DIR");
}

/// The config of one component; says which is missing.
fs::path config_of(const fs::path& base, const fs::path& folder, const char* name) {
  const fs::path config = folder / name;
  if (fs::is_regular_file(config)) return config;
  throw Error(
      ErrorKind::usage,
      fmt::format("loading base model '{}': there is no '{}'", base.string(), config.lexically_relative(base).string()),
      "expected a folder in diffusers layout (unet, vae, text_encoder, tokenizer, scheduler); for trials: lorashard "
      "init-base");
}

/// The VAE's folder: the base's own, another VAE's, or the vae/ of another pipeline.
fs::path vae_folder(const fs::path& folder, const StableDiffusionOptions& options) {
  if (options.vae_folder.empty()) return folder / "vae";
  require_folder(options.vae_folder);
  const fs::path inside = options.vae_folder / "vae";
  return fs::is_regular_file(inside / "config.json") ? inside : options.vae_folder;
}

/// The parts must fit each other; each alone was checked when it was read.
void check_parts(const fs::path& folder, const UNet2DConditionConfig& unet, const AutoencoderKLConfig& vae,
                 const CLIPTextConfig& text) {
  const auto require_equal = [&](const char* left, int64_t a, const char* right, int64_t b) {
    if (a == b) return;
    throw Error(ErrorKind::bad_data,
                fmt::format("loading base model '{}': {} is {}, but {} is {}", folder.string(), left, a, right, b));
  };
  if (!unet.addition_embed_type.empty()) {
    throw Error(ErrorKind::bad_data,
                fmt::format("loading base model '{}': its UNet has addition_embed_type \"{}\" (SDXL)", folder.string(),
                            unet.addition_embed_type),
                "this version trains Stable Diffusion 1.x and 2.x");
  }
  require_equal("the UNet's in_channels", unet.in_channels, "the VAE's latent_channels", vae.latent_channels);
  require_equal("the UNet's out_channels", unet.out_channels, "the VAE's latent_channels", vae.latent_channels);
  require_equal("the UNet's cross_attention_dim", unet.cross_attention_dim, "the text encoder's hidden_size",
                text.hidden_size);
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

}  // namespace

StableDiffusion load_stable_diffusion(const fs::path& folder, const StableDiffusionOptions& options) {
  require_folder(folder);
  const fs::path vae = vae_folder(folder, options);
  const auto unet_config = read_unet_config(config_of(folder, folder / "unet", "config.json"));
  const auto vae_config = read_vae_config(config_of(folder, vae, "config.json"));
  const auto text_config = read_text_encoder_config(config_of(folder, folder / "text_encoder", "config.json"));
  auto scheduler_config = read_scheduler_config(config_of(folder, folder / "scheduler", "scheduler_config.json"));
  if (!options.prediction_type.empty()) scheduler_config.prediction_type = options.prediction_type;
  check_parts(folder, unet_config, vae_config, text_config);

  StableDiffusion base;
  base.folder = folder;
  base.dtype = options.dtype;
  base.noise_scheduler = std::make_shared<DDPMScheduler>(scheduler_config);
  base.tokenizer = std::make_shared<CLIPTokenizer>(folder / "tokenizer");

  const fs::path text_encoder = folder / "text_encoder";
  base.text_encoder = std::make_shared<CLIPTextModel>(text_config);
  load_state_dict(*base.text_encoder,
                  normalise_text_encoder_keys(read_component_weights(text_encoder, kTransformersStem, options.variant)),
                  text_encoder.string(), options.dtype, {"position_ids"});

  base.vae = std::make_shared<AutoencoderKL>(vae_config);
  load_state_dict(*base.vae, normalise_vae_keys(read_component_weights(vae, kDiffusersStem, options.variant)),
                  vae.string(), options.dtype);

  const fs::path unet = folder / "unet";
  base.unet = std::make_shared<UNet2DConditionModel>(unet_config);
  load_state_dict(*base.unet, read_component_weights(unet, kDiffusersStem, options.variant), unet.string(),
                  options.dtype);
  return base;
}

std::string base_model_hash(const fs::path& folder, const StableDiffusionOptions& options) {
  require_folder(folder);
  const fs::path vae = vae_folder(folder, options);
  std::vector<std::pair<std::string, fs::path>> files;  // name in the hash, place
  const auto add = [&](const char* component, const fs::path& file) {
    files.emplace_back(fmt::format("{}/{}", component, file.filename().string()), file);
  };
  const auto add_component = [&](const char* component, const fs::path& place, const char* stem) {
    add(component, config_of(folder, place, "config.json"));
    for (const fs::path& file : component_weight_files(place, stem, options.variant)) add(component, file);
  };
  add_component("unet", folder / "unet", kDiffusersStem);
  add_component("vae", vae, kDiffusersStem);
  add_component("text_encoder", folder / "text_encoder", kTransformersStem);
  add("scheduler", config_of(folder, folder / "scheduler", "scheduler_config.json"));
  for (const char* name :
       {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    if (fs::is_regular_file(folder / "tokenizer" / name)) add("tokenizer", folder / "tokenizer" / name);
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
