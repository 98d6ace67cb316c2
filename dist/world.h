// Who this process is among the ranks of a run. MPI lives and dies with MpiSession; a process that no mpirun or
// srun started is a world of one and never initialises MPI (it starts 0.5 s sooner and needs no MPI daemon).
#pragma once
#include <string>

namespace lorashard {

/// Plain data, the same from start to end of a process. `rank` here is the process rank, never the LoRA rank.
struct World {
  int rank = 0;
  int world_size = 1;
  int local_rank = 0;        ///< position among the ranks of this host
  int local_world_size = 1;  ///< ranks on this host
  std::string hostname;
};

/// RAII over MPI_Init_thread (MPI_THREAD_SERIALIZED) and MPI_Finalize. One per process, made by main().
/// Throws Error(rank_lost) when MPI cannot be initialised, Error(usage) where the environment tells of other ranks that
/// MPI doesn't know.
class MpiSession {
 public:
  MpiSession(int* argc, char*** argv);
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;
  const World& world() const { return world_; }
  /// Ends every rank of the run at once with `exit_code` (MPI_Abort; plain _exit in a world of one).
  [[noreturn]] void abort(int exit_code);

 private:
  World world_;
  bool initialised_ = false;
};

}  // namespace lorashard
