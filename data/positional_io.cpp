#include "data/positional_io.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "dist/error.h"

namespace lorashard {

PositionalReader::PositionalReader(const std::filesystem::path& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (fd_ < 0) throw errno_error(fmt::format("opening '{}'", path.string()), true);
}

PositionalReader::~PositionalReader() { close(fd_); }

void PositionalReader::read_at(std::span<uint8_t> out, uint64_t offset, const std::string& where) const {
  for (size_t done = 0; done < out.size();) {
    const ssize_t n = pread(fd_, out.data() + done, out.size() - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) throw errno_error(where);
    if (n == 0) {
      throw Error(ErrorKind::bad_data,
                  fmt::format("{}: expected {} bytes, found {}: the file is cut short", where, out.size(), done));
    }
    done += static_cast<size_t>(n);
  }
}

PositionalWriter::PositionalWriter(const std::filesystem::path& path)
    : path_(path), fd_(open(path.c_str(), O_WRONLY | O_CLOEXEC)) {
  if (fd_ < 0) fail();
}

PositionalWriter::~PositionalWriter() {
  if (fd_ >= 0) ::close(fd_);
}

void PositionalWriter::write_at(std::span<const uint8_t> bytes, uint64_t offset) {
  while (!bytes.empty()) {
    const ssize_t written = pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) fail();
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
}

void PositionalWriter::close() {
  if (::close(std::exchange(fd_, -1)) != 0) fail();
}

void PositionalWriter::fail() const { throw errno_error(fmt::format("writing '{}'", path_.string())); }

}  // namespace lorashard
