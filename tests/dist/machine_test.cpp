#include "dist/machine.h"

#include <ATen/Version.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>

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

TEST(Machine, TheProgramIsNamedByItsBuildAndByLibTorchs) {
  const std::string program = describe_program();
  EXPECT_TRUE(program.starts_with("program: ")) << program;
  EXPECT_GE(program.find('\n'), std::string("program: ").size() + 16) << "no hash in: " << program;
  EXPECT_NE(program.find("PyTorch built with"), std::string::npos) << program;
  EXPECT_EQ(program, describe_program());
}

TEST(Machine, WhatForcesAnotherInstructionSetShowsInTheArithmetic) {
  const std::string before = describe_arithmetic();
  EXPECT_NE(before.find(at::get_cpu_capability()), std::string::npos) << before;
  setenv("ONEDNN_MAX_CPU_ISA", "AVX2", 1);
  const std::string forced = describe_arithmetic();
  unsetenv("ONEDNN_MAX_CPU_ISA");
  EXPECT_NE(forced, before);
  EXPECT_EQ(describe_arithmetic(), before);
}

}  // namespace
}  // namespace lorashard
