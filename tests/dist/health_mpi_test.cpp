#include "dist/health.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "dist/line_socket.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

// An end of the run would be an end of this process. (tests/faults has the ranks that are lost.)
TEST(Health, ARankThatBeatsAndWorksLongerThanTheTimeoutIsWaitedFor) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const Health health(*communicator, {.collective_timeout_s = 5, .heartbeat_s = 0.05, .straggler_warning_s = 1});
  if (mpi_world().rank == 0) std::this_thread::sleep_for(std::chrono::seconds(6));
  communicator->barrier();
  if (mpi_world().rank == 1) std::this_thread::sleep_for(std::chrono::seconds(6));
  communicator->barrier();
}

TEST(Health, StartsAndStopsManyTimesAndARankMayGoEarly) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (int i = 0; i < 20; ++i) {
    const Health health(*communicator, {.collective_timeout_s = 5, .heartbeat_s = 0.05, .straggler_warning_s = 1});
    if (mpi_world().rank == i % 4) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  {
    const Health health(*communicator, {.collective_timeout_s = 5, .heartbeat_s = 0.05, .straggler_warning_s = 1});
    if (mpi_world().rank == 1) std::this_thread::sleep_for(std::chrono::seconds(6));
  }
  communicator->barrier();
}

TEST(Health, TheActivityCountsTheSameOnEveryRank) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const uint64_t before = activity().number;
  communicator->barrier();
  const auto numbers = communicator->all_gather(std::to_string(activity().number - before));
  for (const std::string& number : numbers) EXPECT_EQ(number, "1");
  EXPECT_EQ(activity().number - before, 2u);
  EXPECT_EQ(activity().collective.load(), Collective::none);
}

}  // namespace
}  // namespace lorashard
