// trace.safetensors: every intermediate of the first steps of a run, so that anyone can audit the arithmetic (names: design,
// docs/determinism.md). Filled on every rank, gathered over ranks at the end of the traced steps, written by rank 0.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "models/lora.h"
#include "models/safetensors.h"

namespace lorashard {

class Trace {
 public:
  /// Records the steps [first_step, first_step + trace_steps). trace_steps 0 records nothing and costs nothing.
  Trace(int64_t first_step, int64_t trace_steps);
  bool records(int64_t step) const { return step >= first_step_ && step < first_step_ + trace_steps_; }

  void init(const std::vector<LoraParameter>& parameters);  ///< init/<key>
  /// step{k}/micro{m}/<name>; floating tensors are kept as fp32, copied.
  void micro_batch(int64_t step, int64_t m, const std::string& name, const at::Tensor& value);
  void step(int64_t step, const std::string& name, const at::Tensor& value);  ///< step{k}/<name>

  /// After the last traced step (or at the end of a shorter run): gathers over the ranks and writes `path` on rank 0. Collective.
  void write(const std::filesystem::path& path, const Metadata& metadata, Communicator& communicator);

 private:
  int64_t first_step_, trace_steps_;
  StateDict tensors_;
};

}  // namespace lorashard
