#include "dist/cuda_library.h"

#include <dlfcn.h>

#include "dist/agreement.h"
#include "dist/cuda_api.h"
#include "dist/error.h"
#include "dist/late_library.h"

namespace lorashard {
namespace {

constexpr const char* kLibraryName = "liblorashard_cuda.so";
constexpr const char* kWheelsHint = "NVIDIA's libraries come with: .venv/bin/pip install -r requirements-cuda.txt";

}  // namespace

CudaLibrary::CudaLibrary(const std::filesystem::path& folder) : path_(folder / kLibraryName) {
  if (!std::filesystem::is_regular_file(path_)) {
    why_not_ = fmt::format("there is no '{}'", path_.string());
    hint_ = "this program was built without its CUDA side: cmake --preset cuda builds both";
    return;
  }
  // Global, and before our own: LibTorch finds its CUDA side by the symbols and registrations this brings in.
  if (dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) == nullptr) {
    why_not_ = fmt::format("loading LibTorch's CUDA side: {}", last_dl_error());
    hint_ = kWheelsHint;
    return;
  }
  const LateLibrary library = load_late_library(path_, "lorashard_cuda", kCudaApiVersion);
  why_not_ = library.why_not;
  if (library.api == nullptr)
    hint_ = library.other_build ? "the program and its CUDA side must come from one build; build both again" : kWheelsHint;
  api_ = static_cast<const CudaApi*>(library.api);
}

CudaDevices CudaLibrary::devices() const {
  LORASHARD_CHECK(loaded(), "{}", why_not_);
  return api_->devices();
}

std::string CudaLibrary::versions() const {
  LORASHARD_CHECK(loaded(), "{}", why_not_);
  return api_->versions();
}

std::unique_ptr<Communicator> CudaLibrary::make_nccl_communicator(Communicator& control,
                                                                  const NcclOptions& options) const {
  run_agreed(control, "starting the GPUs", [&] {
    if (!loaded()) throw Error(ErrorKind::usage, fmt::format("starting the GPUs: {}", why_not_), hint_);
  });
  return api_->make_nccl_communicator(control, options);
}

at::Device CudaLibrary::current_device() const {
  LORASHARD_CHECK(loaded(), "{}", why_not_);
  return api_->current_device();
}

std::unique_ptr<DeviceCopier> CudaLibrary::make_device_copier(at::Device device) const {
  LORASHARD_CHECK(loaded(), "{}", why_not_);
  return api_->make_device_copier(device);
}

int64_t CudaLibrary::peak_memory_bytes(at::Device device) const {
  LORASHARD_CHECK(loaded(), "{}", why_not_);
  return api_->peak_memory_bytes(device);
}

std::string why_no_gpu() {
  const std::filesystem::path library = program_folder() / kLibraryName;
  if (!std::filesystem::is_regular_file(library))
    return fmt::format("this build has no CUDA side (no '{}')", library.string());
  // The driver's library is the cheap thing to ask for: LibTorch's CUDA side takes seconds to load.
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) return "no NVIDIA driver is installed";
  if (!cuda_library().loaded()) return cuda_library().why_not();
  const CudaDevices found = cuda_library().devices();
  return found.devices.empty() ? found.why_none : "";
}

const CudaLibrary& cuda_library() {
  static const CudaLibrary library(program_folder());
  return library;
}

}  // namespace lorashard
