#include "dist/machine.h"

#include <ATen/Version.h>
#include <elf.h>
#include <fmt/core.h>
#include <link.h>
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string_view>

#include "dist/durable_file.h"
#include "dist/sha256.h"

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

/// The linker's hash of what it wrote, from the note of the program itself; empty where there is none.
std::string build_id() {
  std::string id;
  dl_iterate_phdr(
      [](dl_phdr_info* info, size_t, void* result) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          if (info->dlpi_phdr[i].p_type != PT_NOTE) continue;
          const char* at = reinterpret_cast<const char*>(info->dlpi_addr + info->dlpi_phdr[i].p_vaddr);
          const char* const end = at + info->dlpi_phdr[i].p_memsz;
          while (at + sizeof(ElfW(Nhdr)) <= end) {
            ElfW(Nhdr) note;
            std::memcpy(&note, at, sizeof note);
            const char* const name = at + sizeof note;
            const char* const content = name + ((note.n_namesz + 3) & ~3u);
            if (note.n_type == NT_GNU_BUILD_ID && std::string_view(name, note.n_namesz) == std::string_view("GNU", 4)) {
              for (uint32_t k = 0; k < note.n_descsz; ++k) {
                *static_cast<std::string*>(result) += fmt::format("{:02x}", static_cast<unsigned char>(content[k]));
              }
            }
            at = content + ((note.n_descsz + 3) & ~3u);
          }
        }
        return 1;  // the program comes first; the libraries after it are not asked
      },
      &id);
  return id;
}

/// Of the processor's features, those that kernels choose by.
std::string vector_features() {
  std::istringstream all(value_of("/proc/cpuinfo", "flags"));
  std::string found;
  for (std::string feature; all >> feature;) {
    const bool chosen_by = feature.starts_with("avx") || feature.starts_with("amx") || feature == "fma" || feature == "f16c" ||
                           feature == "bmi2" || feature == "sse4_2";
    if (chosen_by) found += (found.empty() ? "" : " ") + feature;
  }
  return found;
}

}  // namespace

std::string describe_program() {
  std::string build = build_id();
  if (build.empty()) build = sha256(read_file("/proc/self/exe"));
  std::string text = fmt::format("program: {}\n", build);
  std::istringstream config(at::show_config());
  for (std::string line; std::getline(config, line);) {
    // Of this host, not of the build: describe_arithmetic() has it.
    if (line.find("CPU capability usage") == line.npos) text += line + "\n";
  }
  return text;
}

std::string describe_arithmetic() {
  std::string text = fmt::format("processor: {}, family {}, model {}\ninstruction set in use: {}\nfeatures: {}\n",
                                 value_of("/proc/cpuinfo", "model name"), value_of("/proc/cpuinfo", "cpu family"),
                                 value_of("/proc/cpuinfo", "model\t"), at::get_cpu_capability(), vector_features());
  for (const char* name : {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ONEDNN_DEFAULT_FPMATH_MODE",
                           "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE"}) {
    const char* value = std::getenv(name);
    text += fmt::format("{}: {}\n", name, value == nullptr ? "not set" : value);
  }
  return text;
}

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
