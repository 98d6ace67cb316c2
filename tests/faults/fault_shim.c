// LD_PRELOAD: makes the k-th call of one kind fail, for files whose path holds FAULT_PATH. Set by the environment
// (FAULT_CALL, FAULT_ERRNO, FAULT_AT, FAULT_TIMES, FAULT_PATH; FAULT_WORKERS: not in the main thread), or from inside the process by fault_arm().
// FAULT_ERRNO "short": write() writes a part and succeeds; "stall": a read waits three seconds and succeeds. Calls of
// threads that race are counted one by one.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static char call_name[32], path_part[256];
static int fault_errno, is_short, is_stall, workers_only;
static long fault_at, fault_times, calls, fired;

// From the `at`-th call on, `times` of them fail (0: all).
void fault_arm(const char* call, const char* error, long at, long times, const char* path) {
  snprintf(call_name, sizeof call_name, "%s", call);
  snprintf(path_part, sizeof path_part, "%s", path);
  is_short = strcmp(error, "short") == 0;
  is_stall = strcmp(error, "stall") == 0;
  static const struct {
    const char* name;
    int number;
  } known[] = {{"ENOSPC", ENOSPC}, {"EINTR", EINTR}, {"EROFS", EROFS}, {"EINVAL", EINVAL}, {"ESTALE", ESTALE}, {"ENOLCK", ENOLCK}};
  fault_errno = EIO;
  for (size_t i = 0; i < sizeof known / sizeof known[0]; ++i) {
    if (strcmp(error, known[i].name) == 0) fault_errno = known[i].number;
  }
  fault_at = at;
  fault_times = times;
  calls = fired = 0;
}
long fault_fired(void) { return fired; }
long fault_calls(void) { return calls; }

__attribute__((constructor)) static void arm_from_environment(void) {
  const char* call = getenv("FAULT_CALL");
  if (!call) return;
  const char* at = getenv("FAULT_AT");
  const char* times = getenv("FAULT_TIMES");
  const char* error = getenv("FAULT_ERRNO");
  const char* path = getenv("FAULT_PATH");
  workers_only = getenv("FAULT_WORKERS") != NULL;
  fault_arm(call, error ? error : "EIO", at ? atol(at) : 1, times ? atol(times) : 0, path ? path : "");
}

static int fails_path(const char* call, const char* path) {
  if (strcmp(call, call_name) != 0 || !path || !strstr(path, path_part)) return 0;
  if (workers_only && gettid() == getpid()) return 0;
  const long k = __atomic_add_fetch(&calls, 1, __ATOMIC_SEQ_CST);
  if (k < fault_at || (fault_times && k >= fault_at + fault_times)) return 0;
  ++fired;
  errno = fault_errno;
  return 1;
}

static int fails_fd(const char* call, int fd) {
  if (strcmp(call, call_name) != 0) return 0;
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  const ssize_t n = readlink(link, path, sizeof path - 1);
  if (n <= 0) return 0;
  path[n] = 0;
  return fails_path(call, path);
}

#define REAL(type, name, ...) \
  static type (*real)(__VA_ARGS__); \
  if (!real) real = (type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void* data, size_t size) {
  REAL(ssize_t, write, int, const void*, size_t);
  if (fails_fd("write", fd)) {
    if (!is_short) return -1;
    if (size > 1) size = size / 2;
  }
  return real(fd, data, size);
}
int fsync(int fd) {
  REAL(int, fsync, int);
  return fails_fd("fsync", fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
  REAL(int, fdatasync, int);
  return fails_fd("fdatasync", fd) ? -1 : real(fd);
}
int close(int fd) {
  REAL(int, close, int);
  const int fails = fails_fd("close", fd);
  const int error = errno;
  const int done = real(fd);  // Linux closes, whatever it answers
  if (!fails) return done;
  errno = error;
  return -1;
}
int rename(const char* from, const char* to) {
  REAL(int, rename, const char*, const char*);
  return fails_path("rename", from) ? -1 : real(from, to);
}
int renameat2(int from_dir, const char* from, int to_dir, const char* to, unsigned flags) {
  REAL(int, renameat2, int, const char*, int, const char*, unsigned);
  return fails_path("exchange", from) ? -1 : real(from_dir, from, to_dir, to, flags);
}
int mkdir(const char* path, mode_t mode) {
  REAL(int, mkdir, const char*, mode_t);
  return fails_path("mkdir", path) ? -1 : real(path, mode);
}
static mode_t mode_of(int flags, va_list rest) { return flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; }
int open(const char* path, int flags, ...) {
  REAL(int, open, const char*, int, ...);
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return fails_path(flags & O_CREAT ? "create" : "open", path) ? -1 : real(path, flags, mode);
}
int open64(const char* path, int flags, ...) {
  REAL(int, open64, const char*, int, ...);
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return fails_path(flags & O_CREAT ? "create" : "open", path) ? -1 : real(path, flags, mode);
}
ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  REAL(ssize_t, pread, int, void*, size_t, off_t);
  if (fails_fd("pread", fd)) {
    if (!is_stall) return -1;
    sleep(3);
  }
  return real(fd, data, size, offset);
}
ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  REAL(ssize_t, pread64, int, void*, size_t, off64_t);
  if (fails_fd("pread", fd)) {
    if (!is_stall) return -1;
    sleep(3);
  }
  return real(fd, data, size, offset);
}
int flock(int fd, int operation) {
  REAL(int, flock, int, int);
  return fails_fd("flock", fd) ? -1 : real(fd, operation);
}
ssize_t read(int fd, void* data, size_t size) {
  REAL(ssize_t, read, int, void*, size_t);
  return fails_fd("read", fd) ? -1 : real(fd, data, size);
}
