// What the machine of this process offers, as far as a run cares.
#pragma once
#include <cstdint>
#include <string>

namespace lorashard {

struct Machine {
  std::string processor;        ///< "AMD EPYC 7B13"
  std::string instruction_set;  ///< the level LibTorch's kernels use here ("AVX2"); equal bits need equal levels
  int cores = 1;                ///< that this process may use
  int64_t memory_bytes = 0, available_bytes = 0;  ///< 0: unknown
  std::string mpi;                                ///< "Open MPI v4.1.4"
  std::string mpirun;                             ///< its path; empty when there is none in PATH
};

Machine this_machine();

/// What must be the same on all ranks: the build of this program and of LibTorch, one a line.
std::string describe_program();
/// What may change the last bit of a result, one a line: the processor's model, the instruction sets it offers and the
/// one LibTorch uses, and the variables of the environment by which the libraries' choice can be forced.
std::string describe_arithmetic();

}  // namespace lorashard
