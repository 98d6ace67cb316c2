// One run in one folder: output_dir/run.lease names the process that writes there (host, boot, process, start, Slurm
// job), and its modification time is touched while that process lives. docs/reliability.md says when another may take
// it over. Rank 0 holds it.
#pragma once
#include <chrono>
#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <thread>

namespace lorashard {

struct LeaseTimes {
  std::chrono::milliseconds heartbeat{500};
  std::chrono::milliseconds patience{250};  ///< for a holder that is about to end
  std::chrono::milliseconds stale{15000};   ///< without a heartbeat on another host: gone
};

class RunLease {
 public:
  /// Takes the lease of `output_dir`, which must exist. Throws Error(usage) naming the holder when a live process has
  /// it, within `patience`; a holder that is gone is named in the log and its lease taken over. Error(io).
  explicit RunLease(const std::filesystem::path& output_dir, const LeaseTimes& times = {});
  /// Releases it, if it is still ours.
  ~RunLease();
  RunLease(const RunLease&) = delete;
  RunLease& operator=(const RunLease&) = delete;

  /// Throws Error(usage) when another run has taken the folder over meanwhile (this process was stopped for long): it
  /// must not write there any more. Thread-safe.
  void require_held() const;

 private:
  void acquire(const std::filesystem::path& own);
  void beat();
  bool is_ours() const;

  std::filesystem::path path_;
  LeaseTimes times_;
  int descriptor_ = -1;  // of our lease; kept open, so that its inode is nobody else's
  std::mutex mutex_;
  std::condition_variable ended_;
  bool ending_ = false;
  std::thread thread_;
};

}  // namespace lorashard
