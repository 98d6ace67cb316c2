// Dropout before and inside a LoRA pair whose masks are pure functions of (seed, image, module, element): a forward that is
// done again, as gradient checkpointing does, draws the same masks. docs/determinism.md specifies it. The trainer says which
// images a forward is of with a LoraDropoutRows; without one (generating pictures, validation) nothing is dropped.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace lorashard {

/// Of one layer. 0: none.
struct LoraDropout {
  double p = 0;         ///< of the elements of its input
  double rank_p = 0;    ///< of its ranks
  double module_p = 0;  ///< of the whole pair
  uint64_t seed = 0;
  uint32_t module = 0;  ///< its position in the adapter
};

/// Which image one row of a batch is.
struct DropoutRow {
  uint64_t slot = 0;
  bool class_image = false;  ///< the class image beside it (prior preservation): its purpose has 0x8000 added
};

/// While it lives, forwards of this thread are of these images, row by row, and dropout is on. They nest.
class LoraDropoutRows {
 public:
  explicit LoraDropoutRows(std::vector<DropoutRow> rows);
  ~LoraDropoutRows();
  LoraDropoutRows(const LoraDropoutRows&) = delete;
  LoraDropoutRows& operator=(const LoraDropoutRows&) = delete;

  /// Those of the innermost one of this thread; null where there is none. What runs a forward again later, or on
  /// another thread, keeps a copy and makes a LoraDropoutRows of it.
  static const std::vector<DropoutRow>* current();

 private:
  std::vector<DropoutRow> rows_;
  const std::vector<DropoutRow>* outer_;
};

/// x with elements dropped and the rest divided by 1 - p; x itself when p = 0 or no rows are set. x [rows, ...].
at::Tensor lora_dropout(const at::Tensor& x, const LoraDropout& dropout);

/// down(x) with the ranks dropped that rank_p says (the rest is divided by 1 - rank_p), and all of them where module_p says so: kohya's
/// rank_dropout and module_dropout, drawn for each image. `low` itself when there is nothing to drop. low [rows, ...], its
/// ranks in dimension `rank_dim`.
at::Tensor lora_rank_dropout(const at::Tensor& low, const LoraDropout& dropout, int64_t rank_dim);

/// Whether lora_dropout() or lora_rank_dropout() would change anything now.
bool drops(const LoraDropout& dropout);

}  // namespace lorashard
