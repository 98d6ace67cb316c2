// Host tensors to the GPU beside the computation, and the memory LibTorch took there; dist/cuda_library.h has the
// contract.
#pragma once
#include <memory>

#include "dist/cuda_library.h"

namespace lorashard {

at::Device current_device();
std::unique_ptr<DeviceCopier> make_device_copier(at::Device device);
int64_t peak_memory_bytes(at::Device device);

}  // namespace lorashard
