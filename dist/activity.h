// What this process is doing, for the thread that watches over it (dist/health.h). Written by the training thread with
// a few relaxed stores, read by another one: a reader may see one field a moment before the next.
#pragma once
#include <atomic>
#include <cstdint>

namespace lorashard {

enum class Collective : int { none, all_reduce, broadcast, all_gather, barrier, finalize };

/// "all_reduce", ...; "" for none.
const char* name_of(Collective collective);

struct Activity {
  std::atomic<int64_t> step{0};  ///< the optimizer step under way, from 1; 0 before the first
  std::atomic<Collective> collective{Collective::none};
  std::atomic<uint64_t> number{0};    ///< collectives entered so far; the same call has the same number on every rank
  std::atomic<uint64_t> progress{0};  ///< grows whenever a collective is entered, left, or gets a piece further
  std::atomic<bool> long_work{false};  ///< at something that takes its time (a picture): nobody calls it late
  std::atomic<int64_t> micro_batches{0}, work_us{0};  ///< done so far, and the time that took: dist/pace_monitor.h

  void did_work(int64_t more_micro_batches, double seconds) {
    micro_batches.fetch_add(more_micro_batches, std::memory_order_relaxed);
    work_us.fetch_add(static_cast<int64_t>(seconds * 1e6), std::memory_order_relaxed);
  }
};

/// Of this process: it is one rank.
Activity& activity();

/// While it lives, this rank is in `collective`.
class InCollective {
 public:
  explicit InCollective(Collective collective);
  ~InCollective();
  InCollective(const InCollective&) = delete;
  InCollective& operator=(const InCollective&) = delete;
};

/// While it lives, this rank is at long work. Not nested.
class InLongWork {
 public:
  InLongWork() { activity().long_work = true; }
  ~InLongWork() { activity().long_work = false; }
  InLongWork(const InLongWork&) = delete;
  InLongWork& operator=(const InLongWork&) = delete;
};

}  // namespace lorashard
