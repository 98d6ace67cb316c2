// The one exception of lorashard, its kinds, and the exit code of each kind (docs/running_mpirun_slurm.md lists them).
// A message says what was being done, on which 'quoted thing', what was expected and what was found; the hint
// says what to do about it. main() (launch/main.cpp) is the only place that turns an Error into text and an exit code.
#pragma once
#include <fmt/core.h>

#include <exception>
#include <stdexcept>
#include <string>
#include <utility>

namespace lorashard {

enum class ErrorKind {
  usage,       ///< exit 2: wrong command line or recipe, a path it names that doesn't exist
  bad_data,    ///< exit 65: input that is there, but wrong: image, shard, safetensors, checkpoint, base model
  internal,    ///< exit 70: a fault of lorashard's own
  io,          ///< exit 74: disk full, a read or write that fails
  stopped,     ///< exit 75: stopped on request with a checkpoint; start again to go on
  rank_lost,   ///< exit 76: a rank was lost or hung
  non_finite,  ///< exit 77: non-finite gradients for 8 steps in a row
};

/// The process exit code of `kind`.
int exit_code(ErrorKind kind);

class Error : public std::runtime_error {
 public:
  /// `hint` may be empty. what() is "message" or "message\nhint: hint". `os_error`: the errno behind it, or 0.
  Error(ErrorKind kind, const std::string& message, const std::string& hint = "", int os_error = 0);
  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  const std::string& hint() const { return hint_; }
  int os_error() const { return os_error_; }
  /// No room: the disk, the quota or the largest size of a file. What on_disk_full in a recipe is about.
  bool is_disk_full() const;

 private:
  ErrorKind kind_;
  std::string message_, hint_;
  int os_error_;
};

/// Throws Error(kind::internal) with file and line when `condition` is false: for what only a bug can break.
#define LORASHARD_CHECK(condition, ...)                                                                     \
  do {                                                                                                      \
    if (!(condition)) [[unlikely]]                                                                          \
      ::lorashard::check_failed(__FILE__, __LINE__, #condition, ::fmt::format(__VA_ARGS__));                \
  } while (false)

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

/// "…: No space left on device" for the current errno, with kind io (or usage for ENOENT when `missing_is_usage`).
Error errno_error(const std::string& doing_what, bool missing_is_usage = false);

/// What an exception of any kind says, without the stack frames that LibTorch's carry.
std::string describe(const std::exception& error);

}  // namespace lorashard
