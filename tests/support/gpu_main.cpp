// main() of the tests that need a GPU. Without one it says so in one line, which ctest takes for "not run".
#include <gtest/gtest.h>
#include <stdlib.h>

#include <cstdio>
#include <string>

#include "dist/agreement.h"
#include "dist/log.h"
#include "dist/world.h"
#include "tests/support/gpu_world.h"

namespace lorashard {
namespace {

Communicator* control = nullptr;
bool share_devices = false;

/// Empty when the tests can run on this rank.
std::string why_not(const World& world) {
  const CudaLibrary& library = cuda_library();
  if (!library.loaded()) return "";  // built, but can't be loaded: the tests fail on it
  const CudaDevices found = library.devices();
  if (found.devices.empty()) return found.why_none;
  share_devices = static_cast<int>(found.devices.size()) < world.local_world_size;
  if (share_devices) {
    // NCCL refuses two ranks of one host on one GPU. Taken for hosts of their own, they talk over loopback.
    setenv("NCCL_HOSTID", ("lorashard-test-" + std::to_string(world.rank)).c_str(), 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  }
  return "";
}

}  // namespace

Communicator& gpu_control() { return *control; }
NcclOptions gpu_options() { return {.share_devices = share_devices}; }

}  // namespace lorashard

int main(int argc, char** argv) {
  using namespace lorashard;
  const MpiSession session(&argc, &argv);
  log::set_rank(session.world().rank, session.world().world_size);
  const auto communicator = make_cpu_communicator(session.world());
  control = communicator.get();
  ::testing::InitGoogleTest(&argc, argv);
  const std::string reason = why_not(session.world());
  if (any_rank(*communicator, !reason.empty())) {
    if (!reason.empty() && session.world().local_rank == 0) std::printf("GPU tests not run: %s\n", reason.c_str());
    return 0;
  }
  return RUN_ALL_TESTS();
}
