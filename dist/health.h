// Never hang: a heartbeat beside MPI, since a rank that waits in MPI can't speak and Open MPI doesn't notice a rank
// that was stopped. A thread of each rank tells rank 0 over TCP every heartbeat_s what the rank is doing, and rank 0
// answers with its own beat. Rank 0 judges all ranks, the others judge rank 0 (the rules: dist/heart_monitor.h; who is
// slow: dist/pace_monitor.h). Who
// finds that a rank is lost, or that all are stuck, tells the others why; each logs it and leaves with exit code 76.
#pragma once
#include <memory>

#include "dist/communicator.h"
#include "dist/heart_monitor.h"

namespace lorashard {

class Health {
 public:
  /// Collective. Connects the ranks and starts the thread; does nothing in a world of one or with collective_timeout_s
  /// = 0. Throws Error(rank_lost) on every rank when one can't reach rank 0. Rank 0's options count, on every rank.
  Health(Communicator& communicator, const HealthOptions& options);
  /// Says goodbye: this rank is done, its silence means nothing from now on. Destroyed after MPI_Finalize, it watches
  /// over that, too.
  ~Health();
  Health(const Health&) = delete;
  Health& operator=(const Health&) = delete;

 private:
  class Watch;
  std::unique_ptr<Watch> watch_;
};

}  // namespace lorashard
