#include "dist/cuda/cuda_devices.h"

#include <cuda_runtime_api.h>
#include <fmt/format.h>
#include <nccl.h>

namespace lorashard {

CudaDevices cuda_devices() {
  CudaDevices found;
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess || count == 0) {
    found.why_none = cudaGetErrorString(error == cudaSuccess ? cudaErrorNoDevice : error);
    int driver = 0;
    if (cudaDriverGetVersion(&driver) == cudaSuccess && driver == 0)
      found.why_none += " (no NVIDIA driver is installed)";
    return found;
  }
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties = {};
    if (const cudaError_t failed = cudaGetDeviceProperties(&properties, i); failed != cudaSuccess) {
      found.why_none = fmt::format("asking for device {}: {}", i, cudaGetErrorString(failed));
      found.devices.clear();
      return found;
    }
    found.devices.push_back({.name = properties.name,
                             .memory_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                             .compute_major = properties.major,
                             .compute_minor = properties.minor});
  }
  return found;
}

std::string cuda_versions() {
  int runtime = 0, nccl = 0;
  cudaRuntimeGetVersion(&runtime);
  ncclGetVersion(&nccl);
  return fmt::format("CUDA {}.{}, NCCL {}.{}.{}", runtime / 1000, runtime % 1000 / 10, nccl / 10000, nccl % 10000 / 100,
                     nccl % 100);
}

}  // namespace lorashard
