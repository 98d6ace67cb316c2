// Which rank is late, lost or stuck, judged from what the ranks' heartbeats say and when they came. No thread, no
// clock, no socket: time is what the caller says, in seconds, so that every rule can be tested.
//
// The rules. A rank that beats and is not in a collective works: the others wait for it as long as it takes, with one
// warning, or for work_timeout_s where that is set; a rank that says that its work is long is given all the time it
// takes, without a warning. A rank that is silent for collective_timeout_s (stopped, hung host, cut network), or whose
// connection is closed for kClosedGrace (its process is gone), is lost. When every rank beats and every one has been in
// a collective for collective_timeout_s without any getting further, nobody will end it. Lost and stuck end the run.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "dist/activity.h"

namespace lorashard {

struct HealthOptions {
  double collective_timeout_s = 60;
  double heartbeat_s = 1;
  double straggler_warning_s = 5;
  double straggler_pace = 1.5;  ///< 0: slow ranks are not reported
  double work_timeout_s = 0;    ///< 0: a rank that works is waited for as long as it takes
};

/// What one heartbeat says.
struct Beat {
  int64_t step = 0;
  Collective collective = Collective::none;
  uint64_t number = 0, progress = 0;
  bool long_work = false;
  int64_t micro_batches = 0, work_us = 0;
};

class HeartMonitor {
 public:
  /// mpirun ends a job whose rank is gone within 2 s and keeps that rank's exit code: it goes first.
  static constexpr double kClosedGrace = 3;

  /// `places`: "rank 2 (node1, local rank 0)", one a rank. `watched`: those that are judged; only where it is all of
  /// them can be told who is behind and whether all are stuck.
  HeartMonitor(std::vector<std::string> places, const std::vector<int>& watched, const HealthOptions& options,
               double now);

  void beat(int rank, const Beat& beat, double now);
  void closed(int rank, double now);  ///< its connection ended
  void left(int rank);                ///< it said that it is done; not judged any more
  /// The watcher itself was stopped for `seconds`: nobody is to blame for that silence.
  void forgive(double seconds);

  struct Verdict {
    std::vector<std::string> warnings;  ///< once for each time a rank is late
    std::vector<std::string> notes;     ///< it is back
    std::string end;                    ///< why the run has to end; empty: it goes on
  };
  Verdict judge(double now);

 private:
  struct Rank {
    std::string place;
    bool watched = false, left = false, closed = false, warned = false;
    Beat beat;
    double last_beat = 0, closed_at = 0, entered = 0, late_since = 0;
    double long_work_until = 0;  // nobody waits for it in vain before
  };
  std::string end_of_lost(double now) const;
  std::string end_of_stuck(double now);
  void judge_lateness(Rank& rank, double now, Verdict& verdict) const;
  const Rank* longest_waiting_for(const Rank& rank) const;
  /// How long `waiting` has waited for `rank`, the time of its long work not counted.
  static double waited(const Rank& waiting, const Rank& rank, double now);
  std::string last_seen(const Rank& rank) const;

  HealthOptions options_;
  std::vector<Rank> ranks_;
  bool sees_all_ = false;
  double stuck_since_ = 0;
  uint64_t stuck_progress_ = 0;
};

}  // namespace lorashard
