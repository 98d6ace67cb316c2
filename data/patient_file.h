// A file of a pack, read with patience: a network file system may lose a handle (ESTALE after a failover) or fail a read
// for a moment. The file is opened anew and the read repeated, with growing pauses, before that ends a run of days.
#pragma once
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <mutex>

namespace lorashard {

/// Runs `action`; where it ends with an Error(io), runs it again, up to about three seconds, then throws what it threw.
void try_patiently(const std::function<void()>& action);

class PatientFile {
 public:
  /// Opens `path` for reading. Throws Error(usage) where it doesn't exist, Error(io) where it stays unreadable.
  explicit PatientFile(const std::filesystem::path& path);
  ~PatientFile();
  PatientFile(const PatientFile&) = delete;
  PatientFile& operator=(const PatientFile&) = delete;

  /// Up to `size` bytes at `offset` into `to`; fewer only at the end of the file. Thread-safe. Throws Error(io) once
  /// about three seconds of trying again didn't help.
  size_t read(void* to, size_t size, uint64_t offset) const;

 private:
  const std::filesystem::path path_;
  mutable std::mutex mutex_;
  mutable int fd_ = -1;
  mutable int generation_ = 0;  // how often it was opened anew

  int open_once() const;
  void open_anew(int generation) const;
};

}  // namespace lorashard
