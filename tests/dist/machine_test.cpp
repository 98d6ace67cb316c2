#include "dist/machine.h"

#include <gtest/gtest.h>
#include <unistd.h>

namespace lorashard {
namespace {

TEST(Machine, IsTheOneThisTestRunsOn) {
  const Machine machine = this_machine();
  EXPECT_FALSE(machine.instruction_set.empty());
  EXPECT_GE(machine.cores, 1);
  EXPECT_LE(machine.cores, sysconf(_SC_NPROCESSORS_CONF));
  EXPECT_EQ(machine.memory_bytes, static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGESIZE));
  EXPECT_GT(machine.available_bytes, 0);
  EXPECT_LE(machine.available_bytes, machine.memory_bytes);
  EXPECT_NE(machine.mpi.find("Open MPI v"), std::string::npos) << machine.mpi;
  EXPECT_TRUE(machine.mpirun.empty() || access(machine.mpirun.c_str(), X_OK) == 0) << machine.mpirun;
}

}  // namespace
}  // namespace lorashard
