// adapter_probe deltas ADAPTER WEIGHTS.safetensors OUT.safetensors: what an adapter adds to given weights.
// WEIGHTS holds "<component>.<diffusers path>" -> weight; OUT the same names -> delta_weight().
// adapter_probe apply BASE ADAPTER SCALE OUT.safetensors: the UNet's and text encoder's weights after apply_adapter(),
// and which of them are no longer what the base's files hold ("changed").
#include <ATen/ATen.h>
#include <fmt/format.h>

#include <string>

#include "dist/error.h"
#include "models/adapter_apply.h"

using namespace lorashard;

namespace {

void deltas(const std::string& adapter_path, const std::string& weights_path, const std::string& out) {
  const SafetensorsFile weights(weights_path);
  StateDict result;
  for (const AdapterModule& module : read_adapter(adapter_path).modules) {
    const std::string name = module.component + "." + module.path;
    result[name] = delta_weight(module, weights.tensor(name)).contiguous();
  }
  write_safetensors(out, result);
}

void apply(const std::string& base_path, const std::string& adapter_path, double scale, const std::string& out) {
  StableDiffusion base = load_stable_diffusion(base_path);
  const auto collect = [&] {
    StateDict state;
    for (const auto& item : base.unet->named_parameters()) state["unet." + item.key()] = item.value().detach();
    for (const auto& item : base.text_encoder->named_parameters())
      state["text_encoder." + item.key()] = item.value().detach();
    return state;
  };
  const StateDict before = collect();
  apply_adapter(base, read_adapter(adapter_path, module_names(base)), scale);
  StateDict result = collect();
  int64_t changed = 0;
  for (auto& [key, value] : result) {
    changed += !at::equal(value, before.at(key));
    value = value.contiguous();
  }
  write_safetensors(out, result, {{"changed", std::to_string(changed)}});
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "deltas" && argc == 5) {
      deltas(argv[2], argv[3], argv[4]);
    } else if (command == "apply" && argc == 6) {
      apply(argv[2], argv[3], std::stod(argv[4]), argv[5]);
    } else {
      fmt::print(stderr, "usage: adapter_probe deltas ADAPTER WEIGHTS OUT | apply BASE ADAPTER SCALE OUT\n");
      return 2;
    }
  } catch (const Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return exit_code(error.kind());
  }
  return 0;
}
