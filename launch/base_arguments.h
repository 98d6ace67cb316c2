// The options with which a command is told of a base model. Called by `lorashard generate`.
#pragma once
#include <CLI/CLI.hpp>
#include <string>

#include "models/stable_diffusion.h"

namespace lorashard {

struct BaseArguments {
  std::string folder, variant, vae_folder, mixed_precision = "no";
};

/// --base, --variant, --vae, --mixed-precision.
void add_base_arguments(CLI::App& command, BaseArguments& arguments);
/// Throws as load_stable_diffusion().
StableDiffusion load_base(const BaseArguments& arguments);

}  // namespace lorashard
