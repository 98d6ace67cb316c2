// A start that never hangs: MPI waits for ever for a rank that doesn't come, and the heartbeat (dist/health.h) begins
// only once all are there. Until then a thread counts, and ends this process with exit code 76; mpirun or srun ends the
// others.
#pragma once
#include <condition_variable>
#include <mutex>
#include <thread>

namespace lorashard {

class StartDeadline {
 public:
  /// Ends the process after `seconds` (0: never) unless met() comes before. Does nothing in a process that no mpirun or
  /// srun started.
  explicit StartDeadline(double seconds);
  ~StartDeadline();
  StartDeadline(const StartDeadline&) = delete;
  StartDeadline& operator=(const StartDeadline&) = delete;
  /// All ranks are there. May be called again.
  void met();

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool met_ = false;
  std::thread thread_;
};

}  // namespace lorashard
