// What liblorashard_cuda.so offers to dist/cuda_library.cpp. C++ types cross the border, so both must come from one
// build: they compare versions before anything else is called.
#pragma once
#include <memory>
#include <string>

#include "dist/cuda_library.h"

namespace lorashard {

struct CudaApi {
  CudaDevices (*devices)();
  std::string (*versions)();
  std::unique_ptr<Communicator> (*make_nccl_communicator)(Communicator& control, const NcclOptions& options);
  at::Device (*current_device)();
  std::unique_ptr<DeviceCopier> (*make_device_copier)(at::Device device);
  int64_t (*peak_memory_bytes)(at::Device device);
};

/// Raise the number behind the slash when this header changes.
inline constexpr const char* kCudaApiVersion = LORASHARD_VERSION "/2";

}  // namespace lorashard
