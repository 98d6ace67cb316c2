#include "data/patient_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <thread>
#include <utility>

#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace {

using std::chrono::milliseconds;
constexpr milliseconds kFirstPause{100}, kLastPause{1600};  // doubled each time: 3.1 s in all

bool may_pass(int error) { return error == ESTALE || error == EIO || error == ETIMEDOUT || error == EAGAIN; }

}  // namespace

void try_patiently(const std::function<void()>& action) {
  for (milliseconds pause = kFirstPause;; pause *= 2) {
    try {
      return action();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::io || pause > kLastPause) throw;
      if (pause == kFirstPause) log::warning("{}; trying again", error.message());
    }
    std::this_thread::sleep_for(pause);
  }
}

PatientFile::PatientFile(const std::filesystem::path& path) : path_(path) {
  fd_ = open_once();
  if (fd_ < 0) throw errno_error(fmt::format("opening shard '{}'", path_.string()), true);
}

PatientFile::~PatientFile() {
  if (fd_ >= 0) close(fd_);
}

int PatientFile::open_once() const {
  int fd = -1;
  do {
    fd = open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a FIFO must not wait for a writer
  } while (fd < 0 && errno == EINTR);
  return fd;
}

// Several threads may meet the same dead handle: the first replaces it. Another thread may be reading by it, so it is
// replaced in place, under the same number.
void PatientFile::open_anew(int generation) const {
  const std::lock_guard lock(mutex_);
  if (generation != generation_) return;
  const int fresh = open_once();
  if (fresh < 0) return;  // the next read fails as before, and tries again
  dup3(fresh, fd_, O_CLOEXEC);
  close(fresh);
  ++generation_;
}

size_t PatientFile::read(void* to, size_t size, uint64_t offset) const {
  milliseconds pause = kFirstPause;
  size_t done = 0;
  while (done < size) {
    int generation = 0;
    {
      const std::lock_guard lock(mutex_);
      generation = generation_;
    }
    const ssize_t n = pread(fd_, static_cast<char*>(to) + done, size - done, static_cast<off_t>(offset + done));
    if (n == 0) break;
    if (n > 0) {
      done += static_cast<size_t>(n);
      continue;
    }
    const int error = errno;
    if (error == EINTR) continue;
    if (!may_pass(error) || pause > kLastPause) {
      errno = error;
      throw errno_error(fmt::format("reading '{}'", path_.string()));
    }
    if (pause == kFirstPause) {
      errno = error;
      log::warning("{}; trying again", errno_error(fmt::format("reading '{}'", path_.string())).message());
    }
    std::this_thread::sleep_for(pause);
    pause *= 2;
    open_anew(generation);
  }
  return done;
}

}  // namespace lorashard
