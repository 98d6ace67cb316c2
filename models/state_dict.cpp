#include "models/state_dict.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <unordered_set>

#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxIndexBytes = uint64_t{64} << 20;
constexpr size_t kMaxListed = 10;

/// Where a component's weights are: one file, or an index and its shards.
struct WeightFiles {
  fs::path index;  ///< empty without one
  std::map<std::string, std::string> weight_map;
  std::vector<fs::path> files;
};

/// `name` must be a file of the index's own folder: an index is data from strangers.
void check_shard_name(const fs::path& index, const std::string& name) {
  const bool is_plain =
      !name.empty() && name != "." && name != ".." && name.find_first_of(std::string("/\\\0", 3)) == name.npos;
  if (is_plain) return;
  throw Error(ErrorKind::bad_data,
              fmt::format("reading '{}': the shard name '{}' is not a plain file name", index.string(), name));
}

WeightFiles read_index(const fs::path& index) {
  WeightFiles found;
  found.index = index;
  try {
    const auto json = nlohmann::json::parse(read_file(index, kMaxIndexBytes));
    found.weight_map = json.at("weight_map").get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    throw Error(ErrorKind::bad_data,
                fmt::format("reading '{}': not an index of weights: {}", index.string(), error.what()));
  }
  std::set<std::string> names;
  for (const auto& [key, name] : found.weight_map) names.insert(name);
  for (const std::string& name : names) {
    check_shard_name(index, name);
    found.files.push_back(index.parent_path() / name);
  }
  return found;
}

/// What to do when `folder` has weights, but not those asked for.
std::string hint_for_missing(const fs::path& folder, const std::string& stem, const std::string& variant) {
  std::error_code ignored;
  if (!variant.empty() && (fs::exists(folder / (stem + ".safetensors"), ignored) ||
                           fs::exists(folder / (stem + ".safetensors.index.json"), ignored))) {
    return fmt::format("it has weights without a variant: leave 'variant = \"{}\"' out", variant);
  }
  if (variant.empty() && fs::exists(folder / (stem + ".fp16.safetensors"), ignored)) {
    return "it has the fp16 variant alone: set 'variant = \"fp16\"'";
  }
  for (const char* old : {"diffusion_pytorch_model.bin", "pytorch_model.bin"}) {
    if (fs::exists(folder / old, ignored)) {
      return fmt::format("it has '{}': pickled weights are not read; save the model with safe_serialization=True", old);
    }
  }
  return "a base model is a whole diffusers folder; copy or download the missing file";
}

WeightFiles find_weights(const fs::path& folder, const std::string& stem, const std::string& variant) {
  std::vector<std::string> singles, indices;
  if (variant.empty()) {
    singles = {stem + ".safetensors"};
    indices = {stem + ".safetensors.index.json"};
  } else {
    singles = {fmt::format("{}.{}.safetensors", stem, variant)};
    // diffusers writes the first spelling and still reads the second.
    indices = {fmt::format("{}.safetensors.index.{}.json", stem, variant),
               fmt::format("{}.{}.safetensors.index.json", stem, variant)};
  }
  for (const std::string& name : singles) {
    if (fs::exists(folder / name)) return {.index = {}, .weight_map = {}, .files = {folder / name}};
  }
  for (const std::string& name : indices) {
    if (fs::exists(folder / name)) return read_index(folder / name);
  }
  throw Error(ErrorKind::usage,
              fmt::format("loading weights from '{}': there is neither '{}' nor '{}'", folder.string(), singles.front(),
                          indices.front()),
              hint_for_missing(folder, stem, variant));
}

/// All tensors of the shards; the index must say exactly what they hold.
StateDict read_shards(const WeightFiles& found) {
  const auto fault = [&](const std::string& why) {
    return Error(ErrorKind::bad_data, fmt::format("reading '{}': {}", found.index.string(), why),
                 "download the model again");
  };
  StateDict state;
  for (const fs::path& file : found.files) {
    if (!fs::exists(file)) throw fault(fmt::format("its shard '{}' is missing", file.filename().string()));
    for (auto& [key, tensor] : SafetensorsFile(file).tensors()) {
      const auto listed = found.weight_map.find(key);
      if (listed == found.weight_map.end() || listed->second != file.filename()) {
        throw fault(
            fmt::format("shard '{}' holds '{}', which the index doesn't place there", file.filename().string(), key));
      }
      state.emplace(key, tensor);
    }
  }
  for (const auto& [key, name] : found.weight_map) {
    if (state.count(key) == 0) throw fault(fmt::format("shard '{}' lacks '{}'", name, key));
  }
  return state;
}

/// "2 missing keys: 'a', 'b'" with at most kMaxListed of them; "" for none.
std::string listing(const std::vector<std::string>& keys, const char* kind) {
  if (keys.empty()) return "";
  const size_t shown = std::min(keys.size(), kMaxListed);
  std::string text = fmt::format("{} {} {}: {}", keys.size(), kind, keys.size() == 1 ? "key" : "keys",
                                 fmt::join(keys.begin(), keys.begin() + static_cast<ptrdiff_t>(shown), ", "));
  if (shown < keys.size()) text += fmt::format(" and {} more", keys.size() - shown);
  return text;
}

bool has_suffix(const std::string& key, const std::vector<std::string>& suffixes) {
  return std::any_of(suffixes.begin(), suffixes.end(), [&](const std::string& s) {
    return key.size() >= s.size() && key.compare(key.size() - s.size(), s.size(), s) == 0;
  });
}

}  // namespace

std::vector<fs::path> component_weight_files(const fs::path& folder, const std::string& stem,
                                             const std::string& variant) {
  WeightFiles found = find_weights(folder, stem, variant);
  if (!found.index.empty()) found.files.push_back(found.index);
  std::sort(found.files.begin(), found.files.end());
  return found.files;
}

StateDict read_component_weights(const fs::path& folder, const std::string& stem, const std::string& variant) {
  const WeightFiles found = find_weights(folder, stem, variant);
  return found.index.empty() ? SafetensorsFile(found.files.front()).tensors() : read_shards(found);
}

void load_state_dict(torch::nn::Module& module, const StateDict& state, const std::string& what, at::ScalarType dtype,
                     const std::vector<std::string>& ignored_suffixes, at::Device device) {
  std::vector<std::string> missing, unexpected, misshapen;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs;
  std::unordered_set<std::string> wanted;
  for (const auto& parameter : module.named_parameters()) {
    wanted.insert(parameter.key());
    const auto found = state.find(parameter.key());
    if (found == state.end()) {
      missing.push_back(fmt::format("'{}'", parameter.key()));
    } else if (found->second.sizes() != parameter.value().sizes()) {
      misshapen.push_back(fmt::format("'{}' (expected [{}], found [{}])", parameter.key(),
                                      fmt::join(parameter.value().sizes(), ", "),
                                      fmt::join(found->second.sizes(), ", ")));
    } else if (!found->second.is_floating_point()) {
      misshapen.push_back(fmt::format("'{}' (expected floating point, found {})", parameter.key(),
                                      c10::toString(found->second.scalar_type())));
    } else {
      pairs.emplace_back(parameter.value(), found->second);
    }
  }
  for (const auto& [key, tensor] : state) {
    if (wanted.count(key) == 0 && !has_suffix(key, ignored_suffixes)) unexpected.push_back(fmt::format("'{}'", key));
  }
  std::vector<std::string> faults = {listing(missing, "missing"), listing(unexpected, "unexpected"),
                                     listing(misshapen, "misshapen")};
  std::erase(faults, "");
  if (!faults.empty()) {
    throw Error(ErrorKind::bad_data, fmt::format("loading the weights of '{}': {}", what, fmt::join(faults, "; ")),
                "the weights belong to another model than its config.json describes");
  }
  // set_data: the module's member handle and its parameter registry are one TensorImpl, so both see the new storage.
  for (auto& [parameter, value] : pairs) {
    at::Tensor weight = value.to(device, dtype);
    // As cuDNN wants convolutions of channels_last images; else it would turn the weight at every call.
    if (device.is_cuda() && weight.dim() == 4) weight = weight.contiguous(at::MemoryFormat::ChannelsLast);
    if (!weight.is_same(value)) release_mapped_pages(value);  // else a base in bf16 would be in memory twice while it is loaded
    parameter.set_data(weight);
  }
}

void release_weights(torch::nn::Module& module) {
  for (const auto& parameter : module.named_parameters()) {
    const at::Tensor weight = parameter.value();
    weight.set_data(at::empty({0}, weight.options()));
  }
}

}  // namespace lorashard
