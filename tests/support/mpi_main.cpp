// main() of the tests that run under mpirun: MPI is up before the first test, and every rank's failures count.
#include <gtest/gtest.h>

#include "dist/log.h"
#include "dist/world.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

const World* current_world = nullptr;

}  // namespace

const World& mpi_world() { return *current_world; }

}  // namespace lorashard

int main(int argc, char** argv) {
  lorashard::MpiSession session(&argc, &argv);
  lorashard::current_world = &session.world();
  lorashard::log::set_rank(session.world().rank, session.world().world_size);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
