#include "dist/error.h"

#include <c10/util/Exception.h>

#include <cerrno>
#include <system_error>

namespace lorashard {

int exit_code(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::usage: return 2;
    case ErrorKind::bad_data: return 65;
    case ErrorKind::internal: return 70;
    case ErrorKind::io: return 74;
    case ErrorKind::stopped: return 75;
    case ErrorKind::rank_lost: return 76;
    case ErrorKind::non_finite: return 77;
  }
  return 70;
}

Error::Error(ErrorKind kind, const std::string& message, const std::string& hint, int os_error)
    : std::runtime_error(hint.empty() ? message : message + "\nhint: " + hint),
      kind_(kind), message_(message), hint_(hint), os_error_(os_error) {}

bool Error::is_disk_full() const { return os_error_ == ENOSPC || os_error_ == EDQUOT || os_error_ == EFBIG; }

void check_failed(const char* file, int line, const char* condition, const std::string& message) {
  throw Error(ErrorKind::internal, fmt::format("{}:{}: '{}' does not hold: {}", file, line, condition, message),
              "this is a fault of lorashard; please report it with this line and the recipe");
}

Error errno_error(const std::string& doing_what, bool missing_is_usage) {
  const int code = errno;
  const bool missing = code == ENOENT || code == ENOTDIR;
  return Error(missing && missing_is_usage ? ErrorKind::usage : ErrorKind::io,
               fmt::format("{}: {}", doing_what, std::generic_category().message(code)), "", code);
}

std::string describe(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
}

}  // namespace lorashard
