#include "dist/late_library.h"

#include <dlfcn.h>

#include "dist/error.h"

namespace lorashard {

std::string last_dl_error() {
  const char* text = dlerror();
  return text == nullptr ? "unknown error" : text;
}

std::filesystem::path program_folder() {
  std::error_code error;
  return std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
}

LateLibrary load_late_library(const std::filesystem::path& path, const std::string& name, const std::string& version) {
  LateLibrary library;
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (handle == nullptr) {
    library.why_not = fmt::format("loading '{}': {}", path.string(), last_dl_error());
    return library;
  }
  const auto found = reinterpret_cast<const char* (*)()>(dlsym(handle, (name + "_api_version").c_str()));
  const auto api = reinterpret_cast<const void* (*)()>(dlsym(handle, (name + "_api").c_str()));
  if (found == nullptr || found() != version || api == nullptr) {
    library.why_not = fmt::format("loading '{}': expected version {}, found {}", path.string(), version,
                                  found == nullptr ? "none" : found());
    library.other_build = true;
    return library;
  }
  library.api = api();
  return library;
}

}  // namespace lorashard
