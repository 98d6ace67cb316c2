#include "models/torch_pickle.h"

#include <ATen/ATen.h>
#include <ATen/core/ivalue.h>
#include <fmt/format.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <vector>

#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 33;
constexpr const char* kConvert =
    "convert it where it came from: safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)";

void collect(const c10::IValue& value, StateDict& state, const std::string& what) {
  if (!value.isGenericDict())
    throw Error(ErrorKind::bad_data, fmt::format("reading '{}': it holds a {}, not a dictionary of tensors", what,
                                                 value.tagKind()),
                kConvert);
  for (const auto& entry : value.toGenericDict()) {
    if (!entry.key().isString())
      throw Error(ErrorKind::bad_data, fmt::format("reading '{}': a key is no string", what), kConvert);
    const std::string& key = entry.key().toStringRef();
    if (key == "state_dict" && entry.value().isGenericDict()) return collect(entry.value(), state, what);
    if (entry.value().isDouble() || entry.value().isInt()) {
      state[key] = at::scalar_tensor(entry.value().toScalar(), at::kFloat);  // an alpha that is a number
    } else if (entry.value().isTensor()) {
      state[key] = entry.value().toTensor().detach();
    } else {
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading '{}': '{}' is a {}, not a tensor", what, key, entry.value().tagKind()), kConvert);
    }
  }
}

}  // namespace

StateDict read_torch_pickle(const std::filesystem::path& path) {
  const std::string file = read_file(path, kMostBytes);
  const std::vector<char> bytes(file.begin(), file.end());
  const std::string what = path.string();
  if (bytes.size() < 4 || bytes[0] != 'P' || bytes[1] != 'K')
    throw Error(ErrorKind::bad_data,
                fmt::format("reading '{}': neither safetensors nor an archive of torch.save since 1.6", what), kConvert);
  c10::IValue value;
  try {
    value = torch::jit::pickle_load(bytes);
  } catch (const c10::Error& error) {
    throw Error(ErrorKind::bad_data,
                fmt::format("reading '{}': {}", what, error.what_without_backtrace()), kConvert);
  }
  StateDict state;
  collect(value, state, what);
  return state;
}

}  // namespace lorashard
