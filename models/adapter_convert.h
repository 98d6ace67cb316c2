// Adapters of any kind as plain LoRA pairs, exactly or by singular values, and what each format can hold. Called by
// `lorashard convert`.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "models/adapter_file.h"

namespace lorashard {

struct ConvertOptions {
  int64_t rank = 0;         ///< of what only singular values make a pair: loha, lokr, diff; 0: refuse them
  bool resolve_dora = false;  ///< turn DoRA into a plain pair by singular values: needs `weight_of`
  /// The base's weight of a layer; may be empty.
  std::function<at::Tensor(const std::string& component, const std::string& path)> weight_of = {};
};

struct ConvertResult {
  Adapter adapter;              ///< lora modules only: down, up (, dora_scale [out, 1...]), alpha
  int64_t num_approximated = 0;  ///< layers made by singular values
  double worst_error = 0;       ///< of one layer: ||delta - up down|| / ||delta||
  std::string worst_layer;
  double error = 0;             ///< of all those layers together
};

/// Throws Error(usage) where `rank` is needed and missing, naming a layer; Error(bad_data) for what no pair can hold:
/// diff_b, and dora_scale of the older kind (one an input) unless it is resolved.
ConvertResult as_lora(const Adapter& adapter, const ConvertOptions& options);

}  // namespace lorashard
