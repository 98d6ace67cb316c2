#include "dist/world.h"

#include <mpi.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>

#include "dist/activity.h"
#include "dist/error.h"

namespace lorashard {
namespace {

/// True when mpirun or srun started this process as one of its ranks.
bool started_as_rank() {
  if (std::getenv("OMPI_COMM_WORLD_SIZE") != nullptr || std::getenv("PMIX_RANK") != nullptr ||
      std::getenv("PMI_RANK") != nullptr) {
    return true;
  }
  // A batch script has SLURM_PROCID too, but no step; what runs in it without srun is a world of one.
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");
  const bool in_step = std::getenv("SLURM_PROCID") != nullptr && std::getenv("SLURM_STEP_ID") != nullptr;
  if (in_step && tasks != nullptr && std::atoi(tasks) > 1) {
    // Without a rendezvous each task would take itself for rank 0 of one, and all would write the same files.
    throw Error(
        ErrorKind::usage,
        fmt::format("srun started {} tasks without telling them of each other (no PMIX_RANK or PMI_RANK)", tasks),
        "use 'srun --mpi=pmix', or mpirun inside the batch script");
  }
  return false;
}

std::string this_host() {
  char name[256] = {};
  return gethostname(name, sizeof name - 1) == 0 ? name : "localhost";
}

/// A process that knows of no launcher but inherited the variables of one (or was given wrong ones) would be a world of
/// its own, and several such would each take themselves for rank 0.
void require_world_of_launcher(const World& world) {
  const char* size = std::getenv("OMPI_COMM_WORLD_SIZE");
  const char* name = "OMPI_COMM_WORLD_SIZE";
  if (size == nullptr) size = std::getenv(name = "SLURM_STEP_NUM_TASKS");
  if (size == nullptr || std::atoi(size) <= world.world_size) return;
  throw Error(ErrorKind::usage,
              fmt::format("starting MPI: expected {} ranks ({}), found {}: this one is rank {} of them", size, name,
                          world.world_size, world.rank),
              "start all ranks by one mpirun or srun --mpi=pmix; outside of them, unset that variable");
}

void check(int code, const char* call) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(ErrorKind::rank_lost, fmt::format("starting MPI: {} failed: {}", call, std::string(text, length)));
}

}  // namespace

MpiSession::MpiSession(int* argc, char*** argv) {
  world_.hostname = this_host();
  if (!started_as_rank()) return;
  int provided = MPI_THREAD_SINGLE;
  check(MPI_Init_thread(argc, argv, MPI_THREAD_SERIALIZED, &provided), "MPI_Init_thread");
  initialised_ = true;
  if (provided < MPI_THREAD_SERIALIZED) {
    throw Error(ErrorKind::rank_lost, "starting MPI: expected MPI_THREAD_SERIALIZED, found less",
                "use an MPI library built with thread support");
  }
  MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
  check(MPI_Comm_rank(MPI_COMM_WORLD, &world_.rank), "MPI_Comm_rank");
  check(MPI_Comm_size(MPI_COMM_WORLD, &world_.world_size), "MPI_Comm_size");
  require_world_of_launcher(world_);
  MPI_Comm host = MPI_COMM_NULL;
  check(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world_.rank, MPI_INFO_NULL, &host),
        "MPI_Comm_split_type");
  check(MPI_Comm_rank(host, &world_.local_rank), "MPI_Comm_rank");
  check(MPI_Comm_size(host, &world_.local_world_size), "MPI_Comm_size");
  check(MPI_Comm_free(&host), "MPI_Comm_free");
}

MpiSession::~MpiSession() {
  if (!initialised_) return;
  // MPI_Finalize waits for every rank. One that leaves by an exception leaves alone, so it ends the others instead.
  if (std::uncaught_exceptions() > 0) MPI_Abort(MPI_COMM_WORLD, exit_code(ErrorKind::internal));
  const InCollective here(Collective::finalize);
  MPI_Finalize();
}

void MpiSession::abort(int exit_code) {
  std::fflush(nullptr);
  if (initialised_) MPI_Abort(MPI_COMM_WORLD, exit_code);
  _exit(exit_code);
}

}  // namespace lorashard
