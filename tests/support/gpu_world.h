// What a test on GPUs under mpirun knows of itself; gpu_main.cpp holds it.
#pragma once
#include "dist/cuda_library.h"

namespace lorashard {

/// The MPI communicator of all ranks.
Communicator& gpu_control();
/// With share_devices where there are more ranks than GPUs.
NcclOptions gpu_options();

}  // namespace lorashard
