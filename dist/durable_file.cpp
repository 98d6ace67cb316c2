#include "dist/durable_file.h"

#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "dist/error.h"

namespace lorashard {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kTemporary = ".tmp-";

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }
  /// Closes now, since a network file system may report a failed write only here.
  bool close() { return ::close(std::exchange(fd_, -1)) == 0; }

 private:
  int fd_;
};

int open_retrying(const fs::path& path, int flags, mode_t mode = 0) {
  int fd = -1;
  do {
    fd = ::open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return fd;
}

void sync(const fs::path& path, bool folder) {
  const FileDescriptor file(open_retrying(path, folder ? O_RDONLY | O_DIRECTORY : O_RDONLY));
  int failed = file.get() < 0 ? -1 : 0;
  if (failed == 0) {
    do {
      failed = fsync(file.get());
    } while (failed != 0 && errno == EINTR);
    // Some file systems have no fsync of folders and order their renames themselves.
    if (failed != 0 && folder && (errno == EINVAL || errno == ENOTSUP)) return;
  }
  if (failed != 0) throw errno_error(fmt::format("syncing '{}' to disk", path.string()));
}

void write_all(int descriptor, std::string_view bytes, const fs::path& path) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<size_t>(written));
    } else if (errno != EINTR) {
      throw errno_error(fmt::format("writing '{}'", path.string()));
    }
  }
}

void write_bytes(const fs::path& path, std::string_view bytes) {
  FileDescriptor file(open_retrying(path, O_WRONLY | O_CREAT | O_EXCL, 0666));
  if (file.get() < 0) throw errno_error(fmt::format("creating '{}'", path.string()));
  write_all(file.get(), bytes, path);
  if (!file.close()) throw errno_error(fmt::format("closing '{}'", path.string()));
}

}  // namespace

std::string temporary_suffix() {
  uint64_t nonce = 0;
  if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce) nonce = static_cast<uint64_t>(getpid());
  return fmt::format("{}{:016x}", kTemporary, nonce);
}

std::optional<std::string> without_temporary_suffix(const std::string& name) {
  const size_t end = name.rfind(kTemporary), digits = end + kTemporary.size();
  if (end == name.npos || name.size() != digits + 16 || name.find_first_not_of("0123456789abcdef", digits) != name.npos) return std::nullopt;
  return name.substr(0, end);
}

void fsync_file(const fs::path& path) { sync(path, false); }
void fsync_folder(const fs::path& path) { sync(path, true); }

void write_durably(const fs::path& path, const std::function<void(const fs::path&)>& write) {
  const fs::path folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
  const fs::path temporary = folder / (path.filename().string() + temporary_suffix());
  try {
    write(temporary);
    fsync_file(temporary);
    if (std::rename(temporary.c_str(), path.c_str()) != 0) throw errno_error("renaming the finished file");
    fsync_folder(folder);
  } catch (const Error& error) {
    ::unlink(temporary.c_str());
    if (error.kind() != ErrorKind::io) throw;
    throw Error(ErrorKind::io, fmt::format("writing '{}': {}", path.string(), error.message()), error.hint(), error.os_error());
  } catch (const std::exception& error) {
    ::unlink(temporary.c_str());
    throw Error(ErrorKind::io, fmt::format("writing '{}': {}", path.string(), error.what()));
  }
}

void write_durably(const fs::path& path, std::string_view bytes) {
  write_durably(path, [bytes](const fs::path& temporary) { write_bytes(temporary, bytes); });
}

void append_whole(int descriptor, std::string_view bytes, const fs::path& path) {
  struct stat before {};
  if (fstat(descriptor, &before) != 0) throw errno_error(fmt::format("writing '{}'", path.string()));
  try {
    write_all(descriptor, bytes, path);
  } catch (const Error&) {
    while (ftruncate(descriptor, before.st_size) != 0 && errno == EINTR) {
    }
    throw;
  }
}

std::string read_file(const fs::path& path, uint64_t max_bytes) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer.
  const FileDescriptor file(open_retrying(path, O_RDONLY | O_NONBLOCK));
  if (file.get() < 0) throw errno_error(fmt::format("reading '{}'", path.string()), true);
  struct stat status {};
  if (fstat(file.get(), &status) != 0) throw errno_error(fmt::format("reading '{}'", path.string()));
  if (!S_ISREG(status.st_mode)) {
    throw Error(ErrorKind::bad_data, fmt::format("reading '{}': expected a regular file", path.string()));
  }
  std::string bytes;
  size_t room = static_cast<size_t>(std::min<uint64_t>(static_cast<uint64_t>(status.st_size), max_bytes)) + 1;
  while (true) {
    const size_t have = bytes.size();
    if (have > max_bytes) {
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading '{}': expected at most {} bytes, found more", path.string(), max_bytes));
    }
    bytes.resize(have + room);
    ssize_t size = -1;
    do {
      size = ::read(file.get(), bytes.data() + have, room);
    } while (size < 0 && errno == EINTR);
    if (size < 0) throw errno_error(fmt::format("reading '{}'", path.string()));
    bytes.resize(have + static_cast<size_t>(size));
    if (size == 0) return bytes;
    room = size_t{1} << 16;  // the file is at its end, or growing
  }
}

}  // namespace lorashard
