// What a test under mpirun knows of itself; mpi_main.cpp holds the session.
#pragma once
#include "dist/world.h"

namespace lorashard {

const World& mpi_world();

}  // namespace lorashard
