#include "dist/machine.h"

#include <ATen/Version.h>
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace lorashard {
namespace {

/// What stands behind "key:" in a file of such lines; empty when it isn't there.
std::string value_of(const char* path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!line.starts_with(key)) continue;
    const size_t colon = line.find(':');
    if (colon == line.npos) continue;
    const size_t start = line.find_first_not_of(" \t", colon + 1);
    return start == line.npos ? "" : line.substr(start);
  }
  return "";
}

int64_t kilobytes_of(const std::string& key) { return std::atoll(value_of("/proc/meminfo", key).c_str()) * 1024; }

int usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

std::string mpi_library() {
  char text[MPI_MAX_LIBRARY_VERSION_STRING] = {};
  int length = 0;
  if (MPI_Get_library_version(text, &length) != MPI_SUCCESS) return "unknown";  // allowed before MPI_Init
  const std::string version(text);
  return version.substr(0, version.find_first_of(",\n"));
}

std::string in_path(const std::string& program) {
  const char* path = std::getenv("PATH");
  std::istringstream folders(path == nullptr ? "" : path);
  for (std::string folder; std::getline(folders, folder, ':');) {
    const std::filesystem::path candidate = std::filesystem::path(folder) / program;
    if (access(candidate.c_str(), X_OK) == 0) return candidate.string();
  }
  return "";
}

}  // namespace

Machine this_machine() {
  return {.processor = value_of("/proc/cpuinfo", "model name"),
          .instruction_set = at::get_cpu_capability(),
          .cores = usable_cores(),
          .memory_bytes = kilobytes_of("MemTotal"),
          .available_bytes = kilobytes_of("MemAvailable"),
          .mpi = mpi_library(),
          .mpirun = in_path("mpirun")};
}

}  // namespace lorashard
