// What the ranks say to each other. Two kinds of traffic: one flat tensor a step (all_reduce_sum), and small
// control messages (broadcast, all_gather, barrier). Every call is collective: all ranks make the same calls in the
// same order, from one thread. Errors: Error(rank_lost) naming the call.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "dist/world.h"

namespace lorashard {

class Communicator {
 public:
  virtual ~Communicator() = default;
  const World& world() const { return world_; }

  /// Sums `flat` over all ranks, in place. Contiguous, 1-d, float32 or int64, the same size on every rank.
  /// On a GPU it is enqueued on the current stream and does not wait (capturable in a CUDA graph).
  /// int64 sums are the same bits for any rank count; float32 sums are the same bits on every rank only.
  virtual void all_reduce_sum(at::Tensor& flat) = 0;
  /// Copies `flat` of `root` into every rank's `flat` (contiguous, any type, same size).
  virtual void broadcast(at::Tensor& flat, int root) = 0;
  /// Every rank's `bytes` on every rank, in rank order. Sizes may differ.
  virtual std::vector<std::string> all_gather(const std::string& bytes) = 0;
  virtual void barrier() = 0;

 protected:
  explicit Communicator(const World& world) : world_(world) {}
  World world_;
};

/// The CPU communicator of `world`: MPI, or nothing at all in a world of one. MpiSession must outlive it.
std::unique_ptr<Communicator> make_cpu_communicator(const World& world);

}  // namespace lorashard
