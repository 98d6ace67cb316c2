// Which rows a micro-batch holds, and which micro-batches a rank runs: pure functions, no state (docs/determinism.md).
#pragma once
#include <cstdint>
#include <vector>

namespace lorashard {

/// Slots of micro-batch m: s = m * train_batch_size + i. With N images in an epoch, slot s has image
/// permutation(seed, s div N)(s mod N) of it: row 0 repeats[0] times, then row 1, and so on.
struct Slot {
  uint64_t slot;
  int64_t row;
  int64_t epoch;
};

class Sampler {
 public:
  /// `num_samples` images in an epoch. `class_images`: the order is the class pack's own, for the class images beside the
  /// same slots. `repeats`: how often each row would come; empty: once. Their sum is at least num_samples: what is beyond
  /// isn't used.
  Sampler(uint64_t seed, int64_t num_samples, int64_t train_batch_size, bool class_images = false,
          const std::vector<int64_t>& repeats = {});
  std::vector<Slot> micro_batch(int64_t m) const;

 private:
  uint64_t seed_;
  int64_t num_samples_, train_batch_size_;
  bool class_images_;
  std::vector<int64_t> end_of_row_;  // the image after the last of each row; empty: one a row
};

/// The micro-batches of optimizer steps [first_step, end_step) that `rank` of `world_size` runs, in order:
/// step * M + j for every j in [0, M) with j mod world_size == rank. Computed, not stored.
class MicroBatchSchedule {
 public:
  MicroBatchSchedule(int64_t num_micro_batches, int rank, int world_size, int64_t first_step, int64_t end_step);
  int64_t size() const;
  int64_t operator[](int64_t i) const;  ///< number m of this rank's i-th micro-batch
  /// How many micro-batches this rank runs in one step.
  int64_t per_step() const { return per_step_; }

 private:
  int64_t num_micro_batches_, rank_, world_size_, first_step_, end_step_, per_step_;
};

}  // namespace lorashard
