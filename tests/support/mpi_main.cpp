// main() of the tests that run under mpirun: MPI is up before the first test, and every rank's failures count.
#include <gtest/gtest.h>

#include "dist/world.h"

int main(int argc, char** argv) {
  lorashard::MpiSession session(&argc, &argv);
  ::testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
