// Starting ranks on this machine with mpirun.
#pragma once
#include <string>
#include <vector>

namespace lorashard {

/// Runs `program` with `arguments` as `num_ranks` ranks and waits. TERM and INT reach the ranks as a request to stop (USR1, since
/// mpirun would kill them on TERM); USR1 and USR2 are passed on. Returns mpirun's exit code, which is the first failing rank's;
/// 75 when a stop was requested and the ranks wrote their checkpoint; 76 when a rank was killed.
/// Throws Error(usage) when there is no mpirun.
int run_under_mpirun(int num_ranks, const std::string& program, const std::vector<std::string>& arguments);

}  // namespace lorashard
