// The CUDA side as the rest of lorashard sees it: a second shared library, liblorashard_cuda.so, loaded when it is
// first asked for. A program without it, on a machine without NVIDIA's libraries, is whole and trains on CPUs. No CUDA
// headers here.
#pragma once
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace lorashard {

struct CudaDevice {
  std::string name;
  int64_t memory_bytes = 0;
  int compute_major = 0, compute_minor = 0;
};

struct CudaDevices {
  std::vector<CudaDevice> devices;
  std::string why_none;  ///< the driver's words when there is no device
};

struct NcclOptions {
  std::chrono::milliseconds timeout{60000};  ///< for connecting, and for each sum once it has begun on the GPU
  bool share_devices = false;  ///< let several ranks use one GPU (tests; needs an NCCL_HOSTID of its own for each rank)
};

/// Copies of host tensors on this rank's GPU, made while it computes: through page-locked memory, two buffers of each
/// tensor, on a stream of their own. One thread.
class DeviceCopier {
 public:
  virtual ~DeviceCopier() = default;
  /// Begins to copy `host` (contiguous), which may be freed at once. Overwrites what the take() before last returned.
  virtual void begin(const std::vector<at::Tensor>& host) = 0;
  /// The copies begun last, in the order given. The current stream waits for them, the host doesn't.
  virtual std::vector<at::Tensor> take() = 0;
};

struct CudaApi;  // dist/cuda_api.h

class CudaLibrary {
 public:
  /// Looks for liblorashard_cuda.so in `folder`, loads libtorch_cuda.so for the whole process, then the library. Never
  /// throws for what is missing: why_not() says it. Must come before the first use of LibTorch that asks for CUDA:
  /// LibTorch keeps the answer "no".
  explicit CudaLibrary(const std::filesystem::path& folder);

  bool loaded() const { return api_ != nullptr; }
  const std::string& why_not() const { return why_not_; }  ///< empty when loaded
  const std::string& hint() const { return hint_; }
  const std::filesystem::path& path() const { return path_; }

  /// Requires: loaded(). Makes no CUDA context.
  CudaDevices devices() const;
  /// "CUDA 13.0, NCCL 2.28.9". Requires: loaded().
  std::string versions() const;

  /// The communicator of GPU ranks: sums over NCCL on the current stream, everything else through `control` (which must
  /// outlive it). Binds this process to a GPU by its local rank. Collective over `control`. Throws on every rank:
  /// Error(usage) without the library or a GPU of its own for each rank, Error(rank_lost) when the ranks can't connect
  /// within the timeout. A sum that fails or takes longer than the timeout is aborted, and the next call throws
  /// Error(rank_lost); replays of a captured sum have no timeout of their own.
  std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const NcclOptions& options = {}) const;

  /// The GPU that make_nccl_communicator() gave this process. Requires: loaded(), and so the next two.
  at::Device current_device() const;
  std::unique_ptr<DeviceCopier> make_device_copier(at::Device device) const;
  /// The most that LibTorch's tensors took on `device` at once.
  int64_t peak_memory_bytes(at::Device device) const;

 private:
  std::filesystem::path path_;
  std::string why_not_, hint_;
  const CudaApi* api_ = nullptr;
};

/// Why no GPU can be used, in the words of the first thing missing: the library, the driver, a device. Empty when one can.
/// Loads the library only where there is a driver.
std::string why_no_gpu();

/// The one beside this program, loaded at the first call and never unloaded. Thread-safe.
const CudaLibrary& cuda_library();

}  // namespace lorashard
