// A subcommand that is one rank of mpirun or srun, or all there is when nothing started it. Called by train and
// generate.
#pragma once
#include <functional>
#include <memory>

#include "dist/communicator.h"
#include "dist/health.h"

namespace lorashard {

/// Sets `health` up: it outlives the MPI session, since MPI_Finalize waits for every rank.
using RankWork = std::function<void(Communicator& communicator, std::unique_ptr<Health>& health)>;

/// Runs `work` with MPI, logging as this rank, and with requests to stop caught (dist/stop_request.h). An error all
/// ranks know of ends them together, after MPI_Finalize; one that a rank met alone takes the others down.
void run_as_rank(const RankWork& work);

}  // namespace lorashard
