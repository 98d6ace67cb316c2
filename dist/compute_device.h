// Where this run computes, the same on every rank: the CPU, or a GPU for each rank. Called by launch/train.cpp before
// anything asks LibTorch for CUDA.
#pragma once
#include <ATen/core/Tensor.h>

#include <memory>
#include <string>

#include "dist/communicator.h"
#include "dist/cuda_library.h"

namespace lorashard {

/// `wanted` is "cpu", "cuda" or "auto" (cuda where every rank can have a GPU, else cpu, with a line in the log).
/// Returns "cpu" or "cuda". Collective. Throws Error(usage) on every rank when "cuda" can't be had on one.
std::string choose_device(Communicator& control, const std::string& wanted);

/// The GPU of this rank with the communicator over all of them. `deterministic`: LibTorch is told to take kernels that
/// repeat their bits, TF32 is off, and mixed GPU models are refused; else cuDNN tries its kernels out. With
/// LORASHARD_SHARE_GPUS=1 in the environment ranks may share a GPU (tests on one GPU: they talk over loopback sockets).
/// Collective; throws as CudaLibrary::make_nccl_communicator().
struct GpuRank {
  std::unique_ptr<Communicator> communicator;
  at::Device device = at::kCUDA;
};
GpuRank take_gpu(Communicator& control, const NcclOptions& options, bool deterministic);

/// What may change the last bit of what is computed on `device`: describe_arithmetic(), and the GPU's model and libraries.
std::string describe_arithmetic_of(at::Device device);

}  // namespace lorashard
