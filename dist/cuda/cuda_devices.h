// What the CUDA runtime sees of this machine.
#pragma once
#include <string>

#include "dist/cuda_library.h"

namespace lorashard {

CudaDevices cuda_devices();
std::string cuda_versions();

}  // namespace lorashard
