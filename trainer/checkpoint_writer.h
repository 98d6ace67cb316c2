// Checkpoints off the training thread: that one copies the state (a snapshot) and goes on; a thread of the writer's own
// makes files of the copy. One snapshot, one write in flight: a checkpoint that is due meanwhile waits, and none is
// dropped. Made on rank 0; all functions are the training thread's.
#pragma once
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "dist/error.h"
#include "trainer/checkpoint.h"

namespace lorashard {

class CheckpointWriter {
 public:
  using Write = std::function<void(const TrainingState&)>;

  /// `write` runs on the writer's thread and must write all of a checkpoint or throw. `state` gives names and
  /// sizes of the tensors and what never changes (recipe, hashes, keys). With `on_disk_full_continue`, errors of a full disk are
  /// logged and nothing more.
  CheckpointWriter(const TrainingState& state, bool on_disk_full_continue, Write write);
  /// Waits for the write in flight; an error that nobody asked for is logged.
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  struct Timing {
    double wait_ms = 0;      ///< for the write in flight
    double snapshot_ms = 0;  ///< for copying
  };
  /// Waits for the write in flight, then copies counters and tensors of `now` (its texts are not looked at).
  Timing snapshot(const TrainingState& now);
  /// Hands the last snapshot to the writer's thread; not after a write whose error ends the run.
  void start();

  /// Runs `action`, another writing of rank 0 (metrics): its Error is kept and dealt with like one of a checkpoint.
  void guard(const std::function<void()>& action);
  /// An error is waiting for finish(). Never blocks.
  bool failed() const;
  /// Waits for the write in flight, then throws the first error kept. With `must_be_written`, also one that
  /// on_disk_full passed over, if it was the last checkpoint's.
  void finish(bool must_be_written = false);

 private:
  void run();
  void keep(const Error& error);
  void copy(const TrainingState& now);

  const Write write_;
  const bool on_disk_full_continue_;
  TrainingState snapshot_;  // the training thread's while idle, the writer's while writing

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool writing_ = false, ending_ = false;
  std::optional<Error> error_;      // kept for finish()
  std::optional<Error> unwritten_;  // of the last checkpoint, where on_disk_full passed over it
  std::string last_logged_;
  std::thread thread_;
};

}  // namespace lorashard
