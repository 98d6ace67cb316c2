#include "dist/compute_device.h"

#include <ATen/Context.h>
#include <stdlib.h>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/machine.h"

namespace lorashard {
namespace {

/// Must come before CUDA is first used: cuBLAS reads its variable once.
void choose_kernels(bool deterministic) {
  at::Context& context = at::globalContext();
  if (!deterministic) {
    context.setBenchmarkCuDNN(true);  // all else as LibTorch has it
    return;
  }
  setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/1);
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  context.setDeterministicFillUninitializedMemory(false);
  context.setDeterministicCuDNN(true);
  context.setBenchmarkCuDNN(false);
  context.setAllowTF32CuBLAS(false);
  context.setAllowTF32CuDNN(false);
  // Flash attention has a deterministic backward and so has the plain one; the other two add gradients in any order.
  context.setSDPUseMemEfficient(false);
  context.setSDPUseCuDNN(false);
}

bool shares_devices(const World& world) {
  const char* wanted = getenv("LORASHARD_SHARE_GPUS");
  if (wanted == nullptr || std::string(wanted) != "1") return false;
  // NCCL refuses two ranks of one host on one GPU. Taken for hosts of their own, they talk over loopback.
  setenv("NCCL_HOSTID", fmt::format("lorashard-{}", world.rank).c_str(), 1);
  setenv("NCCL_SOCKET_IFNAME", "lo", 1);
  return true;
}

CudaDevice gpu_of(at::Device device) { return cuda_library().devices().devices.at(static_cast<size_t>(device.index())); }

std::string model_of(const CudaDevice& gpu) { return fmt::format("{}, compute {}.{}", gpu.name, gpu.compute_major, gpu.compute_minor); }

}  // namespace

std::string choose_device(Communicator& control, const std::string& wanted) {
  if (wanted == "cpu") return wanted;
  const World& world = control.world();
  const std::vector<std::string> reasons = control.all_gather(why_no_gpu());
  for (size_t rank = 0; rank < reasons.size(); ++rank) {
    if (reasons[rank].empty()) continue;
    const std::string why = world.world_size > 1 ? fmt::format("rank {}: {}", rank, reasons[rank]) : reasons[rank];
    if (wanted == "auto") {
      log::info("computing on the CPU: {}", why);
      return "cpu";
    }
    throw AgreedError(
        Error(ErrorKind::usage, fmt::format("taking a GPU for each rank, as device \"cuda\" asks: {}", why),
              "lorashard doctor says what this machine offers; \"cpu\" (distributed.device, or generate --device) needs none"),
        world);
  }
  return "cuda";
}

GpuRank take_gpu(Communicator& control, const NcclOptions& options, bool deterministic) {
  const World& world = control.world();
  choose_kernels(deterministic);
  NcclOptions with_sharing = options;
  with_sharing.share_devices = shares_devices(world);
  GpuRank rank;
  rank.communicator = cuda_library().make_nccl_communicator(control, with_sharing);
  rank.device = cuda_library().current_device();
  const CudaDevice gpu = gpu_of(rank.device);
  if (deterministic) require_same(control, "the GPU", model_of(gpu));
  log::info("computing on {} {}: {} ({:.1f} GB){}", world.world_size, world.world_size == 1 ? "GPU" : "GPUs", gpu.name,
            static_cast<double>(gpu.memory_bytes) / 1e9, with_sharing.share_devices ? ", shared by ranks" : "");
  return rank;
}

std::string describe_arithmetic_of(at::Device device) {
  const std::string processor = describe_arithmetic();
  if (!device.is_cuda()) return processor + "GPU: none\n";
  return processor + fmt::format("GPU: {}, {}\n", model_of(gpu_of(device)), cuda_library().versions());
}

}  // namespace lorashard
