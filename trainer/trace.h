// trace.safetensors: every intermediate of the first steps of a run, so that anyone can audit the arithmetic (names: docs/
// determinism.md). Filled on every rank, gathered over the ranks after the traced steps, written by rank 0.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/data_loader.h"
#include "dist/communicator.h"
#include "models/lora.h"
#include "models/safetensors.h"
#include "trainer/conditioning.h"
#include "trainer/diffusion_loss.h"
#include "trainer/parameter_groups.h"

namespace lorashard {

class Trace {
 public:
  /// Records the steps [first_step, first_step + trace_steps). With trace_steps 0 every call below does nothing.
  Trace(int64_t first_step, int64_t trace_steps);
  bool records(int64_t step) const { return step >= first_step_ && step < first_step_ + trace_steps_; }
  int64_t first_step() const { return first_step_; }

  void init(const LoraAdapter& adapter);  ///< init/<key>: the parameters before the first traced step
  void micro_batch(int64_t step, const Batch& batch, const Conditioning& conditioning, const DiffusionLoss& out);
  void gradient(int64_t step, const LoraAdapter& adapter, const at::Tensor& mean_gradient);  ///< before clipping
  /// After the update. `lrs`: of each group.
  void update(int64_t step, const LoraAdapter& adapter, double grad_norm, const std::vector<ParameterGroup>& groups,
              const std::vector<double>& lrs);

  /// Gathers over the ranks and writes `path` on rank 0; the metadata gives alpha/rank of each key. Collective.
  void write(const std::filesystem::path& path, const LoraAdapter& adapter, Communicator& communicator);

 private:
  void record(const std::string& name, const at::Tensor& value);

  int64_t first_step_, trace_steps_;
  StateDict tensors_;
};

}  // namespace lorashard
