// Which rank is slow in every step, from what the heartbeats say of work done. A rank's pace is its time for a
// micro-batch; the others wait for the slowest one, step after step, and no wait is ever long enough to be a warning of
// dist/heart_monitor.h. No thread, no clock, no socket.
//
// The rule. Over kSteps steps of every rank (the first step is left out: it warms up) a rank is slow when its pace is
// `slow_pace` times the median of the others' or more, and every step is kWorthSaying seconds longer for it. Ranks
// without micro-batches have no pace.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dist/heart_monitor.h"

namespace lorashard {

class PaceMonitor {
 public:
  static constexpr int64_t kSteps = 10;
  static constexpr double kWorthSaying = 0.02;

  /// `places`: "rank 2 (node1, local rank 0)", one a rank. `slow_pace` 0: nothing is ever said.
  PaceMonitor(std::vector<std::string> places, double slow_pace);

  void beat(int rank, const Beat& beat);
  /// What is new: a rank that became slow, or one that is slow no more; said once for each time.
  std::vector<std::string> judge();

 private:
  struct Rank {
    std::string place;
    bool heard = false, slow = false;
    Beat first, last;  // of the window
    double seconds() const { return static_cast<double>(last.work_us - first.work_us) * 1e-6; }
    int64_t micro_batches() const { return last.micro_batches - first.micro_batches; }
    int64_t steps() const { return last.step - first.step; }
    double pace() const { return seconds() / static_cast<double>(micro_batches()); }
  };
  double median_of_others(const Rank& rank) const;

  double slow_pace_;
  std::vector<Rank> ranks_;
};

}  // namespace lorashard
