// The two symbols of liblorashard_cuda.so.
#include "dist/cuda_api.h"

#include "dist/cuda/cuda_devices.h"
#include "dist/cuda/device_copier.h"
#include "dist/cuda/nccl_communicator.h"

#define LORASHARD_EXPORT extern "C" __attribute__((visibility("default")))

LORASHARD_EXPORT const char* lorashard_cuda_api_version() { return lorashard::kCudaApiVersion; }

LORASHARD_EXPORT const void* lorashard_cuda_api() {
  static constexpr lorashard::CudaApi kApi = {.devices = lorashard::cuda_devices,
                                              .versions = lorashard::cuda_versions,
                                              .make_nccl_communicator = lorashard::make_nccl_communicator,
                                              .current_device = lorashard::current_device,
                                              .make_device_copier = lorashard::make_device_copier,
                                              .peak_memory_bytes = lorashard::peak_memory_bytes};
  return &kApi;
}
