// Running ranks on this machine with mpirun: signals become requests to stop, and nothing is left running behind. One
// Mpirun at a time, in a program of one thread.
#pragma once
#include <csignal>
#include <string>
#include <vector>

namespace lorashard {

class Mpirun {
 public:
  struct End {
    int code = 0;     ///< of lorashard's table; 76 when a rank, or mpirun itself, was killed
    std::string how;  ///< what was lost, for code 76 ("a rank was killed by signal 9"); else empty
  };

  /// Holds back TERM, INT, HUP, USR1 and USR2 from here on: run() reads them.
  Mpirun();
  ~Mpirun();
  Mpirun(const Mpirun&) = delete;
  Mpirun& operator=(const Mpirun&) = delete;

  /// Runs `program` with `arguments` as `num_ranks` ranks until all are gone, mpirun's orphans included. Any of the
  /// signals asks the ranks to stop with a checkpoint (by USR1: on TERM mpirun would kill them): code 75. A second TERM
  /// or INT kills them at once: 75 too, with the checkpoint before. Throws Error(usage) when there is no mpirun.
  End run(int num_ranks, const std::string& program, const std::vector<std::string>& arguments);

  /// True once a signal asked for the end, during run() or between two.
  bool stop_requested();

 private:
  void take(int signal);
  int wait();
  End end_of(int status) const;

  sigset_t signals_, before_;
  pid_t pid_ = 0;
  int requests_ = 0;
  bool killed_ = false;
};

}  // namespace lorashard
