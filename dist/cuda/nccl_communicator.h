// The communicator of GPU ranks; dist/cuda_library.h has its contract.
#pragma once
#include <memory>

#include "dist/cuda_library.h"

namespace lorashard {

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const NcclOptions& options);

}  // namespace lorashard
