#include "models/fuse_base.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <string_view>
#include <system_error>
#include <utility>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "models/safetensors.h"
#include "models/single_file.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

/// Files that hold weights but aren't rewritten. Copied, they would be the base's beside the fused ones.
constexpr std::array<std::string_view, 8> kOtherWeights = {".bin",  ".ckpt", ".pt",      ".pth",
                                                           ".onnx", ".pb",   ".msgpack", ".h5"};

bool holds_other_weights(const fs::path& file) {
  return std::ranges::find(kOtherWeights, file.extension().string()) != kOtherWeights.end();
}

/// The layer's path as a file may spell it: transformers 5 leaves "text_model." out.
std::string without_prefix(const std::string& path) {
  constexpr std::string_view kPrefix = "text_model.";
  return path.starts_with(kPrefix) ? path.substr(kPrefix.size()) : path;
}

/// New values by the name a file gives them, but for kPrefix.
StateDict new_values(const torch::nn::Module& module, const std::set<std::string>& paths) {
  StateDict values;
  for (const auto& parameter : module.named_parameters()) {
    const size_t dot = parameter.key().rfind('.');
    if (dot != std::string::npos && paths.contains(parameter.key().substr(0, dot)))
      values[without_prefix(parameter.key())] = parameter.value().detach();
  }
  return values;
}

/// One file in the original layout: its tensors, some with new values.
class FusingOneFile {
 public:
  explicit FusingOneFile(StateDict tensors) : tensors_(std::move(tensors)) {
    for (const auto& [key, tensor] : tensors_) {
      if (tensor.numel() > 0) by_address_[static_cast<const char*>(tensor.const_data_ptr())] = key;  // mapped, or a copy where unaligned
    }
  }

  /// Puts `value` where `place`, a view of one of the tensors, lies in it.
  void put(const at::Tensor& place, const at::Tensor& value) {
    const auto address = static_cast<const char*>(place.const_data_ptr());
    const auto next = by_address_.upper_bound(address);
    LORASHARD_CHECK(next != by_address_.begin() && place.is_contiguous(), "a weight that is none of the file's");
    const auto& [begin, key] = *std::prev(next);
    at::Tensor& whole = own(key);
    const int64_t offset = (address - begin) / static_cast<int64_t>(place.element_size());
    LORASHARD_CHECK(place.scalar_type() == whole.scalar_type() && offset + place.numel() <= whole.numel(),
                    "a weight that isn't a part of '{}'", key);
    whole.view({-1}).narrow(0, offset, place.numel()).copy_(value.reshape({-1}));
  }
  void put_transposed(const std::string& key, const at::Tensor& value) { own(key).copy_(value.t()); }

  const StateDict& tensors() const { return tensors_; }

 private:
  /// Our copy, made at the first call: mapped bytes must not be written to.
  at::Tensor& own(const std::string& key) {
    at::Tensor& tensor = tensors_.at(key);
    if (owned_.insert(key).second) tensor = tensor.clone();
    return tensor;
  }

  StateDict tensors_;
  std::map<const char*, std::string> by_address_;
  std::set<std::string> owned_;
};

class Fusing {
 public:
  Fusing(const StableDiffusion& base, const ChangedLayers& changed, const std::string& note)
      : base_(base.folder), note_(note) {
    const auto add = [&](const char* component, const torch::nn::Module* module) {
      const auto layers = changed.find(component);
      if (module == nullptr || layers == changed.end()) return;
      values_[component] = new_values(*module, layers->second);
      found_.num_layers += static_cast<int64_t>(layers->second.size());
    };
    add("unet", base.unet.get());
    add("text_encoder", base.text_encoder.get());
    add("text_encoder_2", base.text_encoder_2.get());
  }

  FusedFiles write(const fs::path& out) {
    copy_folder(base_, out, "");
    for (const auto& [component, values] : values_) {
      for (const auto& [key, value] : values) {
        if (written_.contains(component + "." + key)) continue;
        throw Error(ErrorKind::bad_data, fmt::format("fusing '{}': none of the safetensors files of '{}' holds '{}'",
                                                     base_.string(), component, key));
      }
    }
    return found_;
  }

 private:
  void copy_folder(const fs::path& from, const fs::path& to, const std::string& component) {
    fs::create_directories(to);
    for (const auto& entry : fs::directory_iterator(from)) {
      const fs::path name = entry.path().filename();
      if (name.string().starts_with('.')) continue;  // .git, .cache
      const bool is_root = from == base_;
      if (fs::is_directory(entry.path())) {
        copy_folder(entry.path(), to / name, is_root ? name.string() : component);
      } else if (holds_other_weights(name) || (is_root && name.extension() == ".safetensors")) {
        // The whole model in one file beside the folders, or a second form of a component that changes.
        if (is_root || values_.contains(component)) {
          found_.skipped.push_back(entry.path().lexically_relative(base_).string());
        } else {
          copy_file(entry.path(), to / name);
        }
      } else if (name.extension() == ".safetensors" && values_.contains(component)) {
        rewrite(entry.path(), to / name, component);
      } else {
        copy_file(entry.path(), to / name);
      }
    }
  }

  /// Follows links: the Hub's cache is made of them.
  static void copy_file(const fs::path& from, const fs::path& to) {
    fs::copy_file(from, to);
    fsync_file(to);
  }

  void rewrite(const fs::path& from, const fs::path& to, const std::string& component) {
    const SafetensorsFile file(from);
    StateDict tensors = file.tensors();
    for (const auto& [key, value] : values_.at(component)) {
      for (const std::string& name : {key, "text_model." + key}) {
        const auto tensor = tensors.find(name);
        if (tensor == tensors.end()) continue;
        tensor->second = value.to(tensor->second.scalar_type()).reshape(tensor->second.sizes()).contiguous();
        written_.insert(component + "." + key);
      }
    }
    Metadata metadata = file.metadata();
    if (metadata.empty()) metadata["format"] = "pt";
    metadata["fused_adapters"] = note_;
    write_safetensors(to, tensors, metadata);
    ++found_.num_weight_files;
  }

  const fs::path base_;
  const std::string note_;
  std::map<std::string, StateDict> values_;
  std::set<std::string> written_;
  FusedFiles found_;
};

FusedFiles write_fused_file(const StableDiffusion& base, const ChangedLayers& changed, const fs::path& out, const std::string& note) {
  const SafetensorsFile file(base.folder);
  BaseConfigs configs;
  configs.unet = base.unet->config();
  configs.text_encoder = base.text_encoder->config();
  if (base.is_sdxl()) configs.text_encoder_2 = base.text_encoder_2->config();
  const StateDict tensors = file.tensors();
  const auto places = single_file_components(tensors, single_file_family(file).value(), configs);
  const std::map<std::string, const torch::nn::Module*> modules = {
      {"unet", base.unet.get()}, {"text_encoder", base.text_encoder.get()}, {"text_encoder_2", base.text_encoder_2.get()}};
  FusingOneFile fused(tensors);
  FusedFiles found;
  found.num_weight_files = 1;
  for (const auto& [component, paths] : changed) {
    found.num_layers += static_cast<int64_t>(paths.size());
    const StateDict& names = places.at(component);
    for (const auto& [key, value] : new_values(*modules.at(component), paths)) {
      const auto place = names.contains(key) ? names.find(key) : names.find("text_model." + key);
      if (place == names.end())
        throw Error(ErrorKind::bad_data, fmt::format("fusing '{}': it has no '{}' of '{}'", base.folder.string(), key, component));
      if (component == "text_encoder_2" && key == "text_projection.weight") {
        fused.put_transposed(kTextProjectionOfSdxl, value);
      } else {
        fused.put(place->second, value);
      }
    }
  }
  Metadata metadata = file.metadata();
  metadata["fused_adapters"] = note;
  std::error_code fails_below;
  if (out.has_parent_path()) fs::create_directories(out.parent_path(), fails_below);
  write_safetensors(out, fused.tensors(), metadata);
  return found;
}

}  // namespace

void require_place_for_fused(const fs::path& base, const fs::path& out) {
  if (fs::exists(out) && !(fs::is_directory(out) && fs::is_empty(out))) {
    throw Error(ErrorKind::usage, fmt::format("fusing: '{}' exists already", out.string()), "give a new name");
  }
  const bool is_file = names_single_file(base), names_file = out.extension() == ".safetensors";
  if (is_file == names_file && !(is_file && fs::exists(out))) return;
  throw Error(ErrorKind::usage,
              is_file ? fmt::format("fusing: the base '{}' is one file, and '{}' is no name for one", base.string(), out.string())
                      : fmt::format("fusing: the base '{}' is a folder, and '{}' is a file's name", base.string(), out.string()),
              is_file ? "give a name that ends in .safetensors" : "give a folder's name");
}

FusedFiles write_fused_base(const StableDiffusion& base, const ChangedLayers& changed, const fs::path& out,
                            const std::string& note) {
  require_place_for_fused(base.folder, out);
  if (fs::is_regular_file(base.folder)) return write_fused_file(base, changed, out, note);
  const fs::path whole = fs::absolute(out).lexically_normal();
  const fs::path place = whole.has_filename() ? whole : whole.parent_path();
  const fs::path temporary = place.string() + temporary_suffix();
  const auto clean_up = [&] {
    std::error_code ignored;
    fs::remove_all(temporary, ignored);
  };
  try {
    FusedFiles found = Fusing(base, changed, note).write(temporary);
    if (fs::exists(place)) fs::remove(place);
    fs::rename(temporary, place);
    fsync_folder(place.parent_path());
    return found;
  } catch (const fs::filesystem_error& error) {
    clean_up();
    throw Error(ErrorKind::io, fmt::format("fusing into '{}': {}", out.string(), error.code().message()));
  } catch (...) {
    clean_up();
    throw;
  }
}

}  // namespace lorashard
