#include "tests/fuzz/fuzz.h"

#include <stdexcept>

#ifdef __SANITIZE_ADDRESS__
// Freed memory is kept aside only shortly, or it would count as the reader's; an allocation that is too large fails as it does without the
// sanitizer, by std::bad_alloc; and a reader that takes all memory ends this program and no other one.
extern "C" const char* __asan_default_options() {
  return "quarantine_size_mb=8:allocator_may_return_null=1:hard_rss_limit_mb=4000:detect_stack_use_after_return=0";
}
// HDF5 1.10.8 loses some of its own memory when it refuses a damaged file, and GLib keeps what it registered.
extern "C" const char* __lsan_default_suppressions() { return "leak:libhdf5\nleak:libglib\nleak:libgobject\n"; }
#endif

namespace lorashard {
namespace {

/// A line of /proc/self/status, in MB.
int64_t status_mb(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1)) / 1024;
  throw std::runtime_error("/proc/self/status has no " + name);
}

}  // namespace

int64_t start_watching_memory() {
  std::ofstream("/proc/self/clear_refs") << "5";
  return status_mb("VmRSS");
}

int64_t most_memory() { return status_mb("VmHWM"); }

}  // namespace lorashard
