#include "trainer/run_lease.h"

#include <fcntl.h>
#include <fmt/chrono.h>
#include <fmt/core.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <system_error>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace fs = std::filesystem;
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;
constexpr uint64_t kMaxLeaseBytes = 1 << 16;
constexpr const char* kLease = "run.lease";

std::string trimmed_file(const char* path) {
  try {
    std::string text = read_file(path, kMaxLeaseBytes);
    while (!text.empty() && text.back() == '\n') text.pop_back();
    return text;
  } catch (const Error&) {
    return "";  // no /proc here
  }
}

struct ProcessStatus {
  std::string state, start_ticks;  ///< "" where it can't be seen; ticks since boot
};

ProcessStatus status_of(int64_t pid) {
  const std::string stat = trimmed_file(fmt::format("/proc/{}/stat", pid).c_str());
  const size_t name_end = stat.rfind(')');  // the name may hold anything
  ProcessStatus status;
  if (name_end == std::string::npos) return status;
  std::istringstream rest(stat.substr(name_end + 1));
  rest >> status.state;
  for (int i = 4; i <= 22; ++i) rest >> status.start_ticks;
  return status;
}

/// Whether the process `pid` that started at `start_ticks` lives. A number may be another process's by now.
bool is_alive(int64_t pid, const std::string& start_ticks) {
  if (kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH) return false;
  const ProcessStatus status = status_of(pid);
  if (status.state.empty()) return true;  // another user's, and /proc hides it
  return status.state != "Z" && status.state != "X" && status.start_ticks == start_ticks;
}

/// Process ids mean something only within one boot and one namespace.
std::string pid_namespace() {
  char space[64] = {};
  return readlink("/proc/self/ns/pid", space, sizeof space - 1) > 0 ? space : "";
}

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : "";
}

nlohmann::json describe_this_process() {
  char host[256] = {};
  gethostname(host, sizeof host - 1);
  return {{"host", host},
          {"pid", getpid()},
          {"start_ticks", status_of(getpid()).start_ticks},
          {"boot_id", trimmed_file("/proc/sys/kernel/random/boot_id")},
          {"pid_namespace", pid_namespace()},
          {"started", fmt::format("{:%Y-%m-%d %H:%M:%S} UTC", fmt::gmtime(std::time(nullptr)))},
          {"slurm_job_id", environment("SLURM_JOB_ID")},
          {"slurm_restart_count", environment("SLURM_RESTART_COUNT")},
          {"id", temporary_suffix()}};
}

struct Holder {
  nlohmann::json who;       // {} where the file can't be read as a lease
  struct timespec beat {};  // its modification time

  std::string text(const char* key) const {
    const auto it = who.find(key);
    return it != who.end() && it->is_string() ? it->get<std::string>() : "";
  }
  int64_t pid() const {
    const auto it = who.find("pid");
    return it != who.end() && it->is_number_integer() ? it->get<int64_t>() : 0;
  }
  bool same_as(const Holder& other) const { return text("id") == other.text("id"); }
  bool same_beat(const Holder& other) const {
    return beat.tv_sec == other.beat.tv_sec && beat.tv_nsec == other.beat.tv_nsec;
  }
  std::string name() const {
    if (pid() == 0) return "an unknown process";
    const std::string job = text("slurm_job_id");
    return fmt::format("process {} on host '{}'{}, started {}", pid(), text("host"),
                       job.empty() ? "" : fmt::format(" (Slurm job {})", job), text("started"));
  }
};

/// The lease at `path`; nothing when there is none.
std::optional<Holder> read_holder(const fs::path& path) {
  struct stat status {};
  if (stat(path.c_str(), &status) != 0) {
    if (errno == ENOENT || errno == ESTALE) return std::nullopt;
    throw errno_error(fmt::format("reading '{}'", path.string()));
  }
  Holder holder;
  holder.beat = status.st_mtim;
  try {
    holder.who = nlohmann::json::parse(read_file(path, kMaxLeaseBytes), nullptr, /*allow_exceptions=*/false);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::usage) return std::nullopt;  // gone since
    if (error.kind() == ErrorKind::io) throw;
  }
  if (!holder.who.is_object()) holder.who = nlohmann::json::object();
  return holder;
}

/// The file system's own idea of how long ago the last heartbeat was: `fresh` was written just now. Clocks of hosts may
/// differ.
milliseconds age_of(const Holder& holder, const fs::path& fresh) {
  struct stat now {};
  if (stat(fresh.c_str(), &now) != 0) return milliseconds(0);
  const int64_t seconds = std::clamp<int64_t>(now.st_mtim.tv_sec - holder.beat.tv_sec, -1, 1 << 30);
  return milliseconds(std::max<int64_t>(0, seconds * 1000 + (now.st_mtim.tv_nsec - holder.beat.tv_nsec) / 1000000));
}

int64_t number_or_zero(const std::string& text) { return std::strtoll(text.c_str(), nullptr, 10); }

/// ending: lives, and may be about to end.
enum class Verdict { live, ending, gone, unknown };

/// What process tables and Slurm tell; unknown: only the heartbeat can.
Verdict judge(const Holder& holder, const nlohmann::json& us) {
  const auto same = [&](const char* key) { return !holder.text(key).empty() && holder.text(key) == us.at(key); };
  // Slurm starts a job again when it takes the start before for lost, as when slurmd died and the ranks live on: these
  // have to go, and require_held() tells them.
  const bool requeued = same("slurm_job_id") && number_or_zero(holder.text("slurm_restart_count")) <
                                                    number_or_zero(us.at("slurm_restart_count").get<std::string>());
  if (requeued) return Verdict::gone;
  if (holder.pid() > 0 && same("boot_id") && same("pid_namespace")) {
    return is_alive(holder.pid(), holder.text("start_ticks")) ? Verdict::ending : Verdict::gone;
  }
  return Verdict::unknown;
}

/// Watches one holder's heartbeat for as long as that takes.
class Watch {
 public:
  Verdict look(const Holder& holder, const fs::path& fresh, const LeaseTimes& times) {
    if (!first_ || !first_->same_as(holder)) {
      first_ = holder;
      since_ = Clock::now();
      age_ = age_of(holder, fresh);
      return Verdict::unknown;
    }
    if (!first_->same_beat(holder)) return Verdict::live;
    const auto watched = std::chrono::duration_cast<milliseconds>(Clock::now() - since_);
    if (watched < 3 * times.heartbeat) return Verdict::unknown;
    if (watched + age_ >= times.stale) return Verdict::gone;
    if (!said_) {
      log::warning(
          "'{}' was left by {}, which shows no heartbeat: waiting up to {:.0f} s before taking the run folder over",
          kLease, holder.name(), std::chrono::duration<double>(times.stale - age_).count());
    }
    said_ = true;
    return Verdict::unknown;
  }

 private:
  std::optional<Holder> first_;
  Clock::time_point since_;
  milliseconds age_{0};
  bool said_ = false;
};

[[noreturn]] void refuse(const fs::path& path, const Holder& holder) {
  throw Error(ErrorKind::usage,
              fmt::format("starting the training: another run is at work in '{}': {}", path.parent_path().string(),
                          holder.name()),
              fmt::format("wait for it, stop it, or choose another output_dir; only if it is surely gone, remove '{}'",
                          path.string()));
}

/// Gives the file `own` the name `path` too; false when there is one of that name. It appears whole: O_EXCL for a file
/// that is never empty.
bool link_exclusively(int descriptor, const fs::path& own, const fs::path& path) {
  if (::link(own.c_str(), path.c_str()) == 0) return true;
  const int error = errno;
  struct stat status {};
  if (fstat(descriptor, &status) == 0 && status.st_nlink == 2) return true;  // NFS lost the answer, not the link
  if (error == EEXIST) return false;
  if (error == EPERM || error == EOPNOTSUPP || error == ENOSYS) {  // no hard links on this file system
    if (::renameat2(AT_FDCWD, own.c_str(), AT_FDCWD, path.c_str(), RENAME_NOREPLACE) == 0) return true;
    if (errno == EEXIST) return false;
  } else {
    errno = error;
  }
  throw errno_error(fmt::format("making '{}'", path.string()));
}

/// Puts `own` in the place of the lease of `holder`. False when somebody else was faster.
bool take_over(const fs::path& own, const fs::path& path, const Holder& holder) {
  // Two that found the same stale lease: on one host the lock lets them go one by one. Between hosts (most network file
  // systems have no lock on folders) the last rename wins, and require_held() tells the other.
  const int folder = ::open(path.parent_path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (folder >= 0) flock(folder, LOCK_EX);
  const auto still = read_holder(path);
  const bool ours = still && still->same_as(holder) && ::rename(own.c_str(), path.c_str()) == 0;
  if (folder >= 0) ::close(folder);
  return ours;
}

/// Removes what a start that was killed was writing. Called where the lease is ours, so that no other start writes here. (Temporary
/// folders are the checkpoints' own affair.)
void remove_left_over(const fs::path& output_dir) {
  std::error_code error;
  for (fs::directory_iterator it(output_dir, error), end; !error && it != end; it.increment(error)) {
    const auto name = without_temporary_suffix(it->path().filename().string());
    std::error_code gone;
    if (!name || !it->is_regular_file(gone)) continue;
    // A contender's lease lives for seconds, and `lorashard report` may be drawing.
    const bool may_be_at_work = *name == kLease || *name == "report.png";
    const auto age = fs::file_time_type::clock::now() - fs::last_write_time(it->path(), gone);
    if (!may_be_at_work || (!gone && age > std::chrono::hours(1))) fs::remove(it->path(), gone);
  }
}

}  // namespace

RunLease::RunLease(const fs::path& output_dir, const LeaseTimes& times) : path_(output_dir / kLease), times_(times) {
  const fs::path own = path_.string() + temporary_suffix();
  try {
    acquire(own);
  } catch (...) {
    ::unlink(own.c_str());
    if (descriptor_ >= 0) ::close(descriptor_);
    throw;
  }
  ::unlink(own.c_str());
  remove_left_over(output_dir);
  thread_ = std::thread([this] { beat(); });
}

void RunLease::acquire(const fs::path& own) {
  const nlohmann::json us = describe_this_process();
  descriptor_ = ::open(own.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_APPEND, 0666);
  if (descriptor_ < 0) throw errno_error(fmt::format("creating '{}'", own.string()));
  append_whole(descriptor_, us.dump(2) + "\n", own);
  const auto start = Clock::now();
  Watch watch;
  while (true) {
    if (link_exclusively(descriptor_, own, path_)) return;
    const auto holder = read_holder(path_);
    if (!holder) continue;  // released this moment
    Verdict verdict = judge(*holder, us);
    if (verdict == Verdict::unknown) verdict = watch.look(*holder, own, times_);
    if (verdict == Verdict::live) refuse(path_, *holder);
    if (verdict == Verdict::ending && Clock::now() - start > times_.patience) refuse(path_, *holder);
    if (verdict == Verdict::gone && take_over(own, path_, *holder)) {
      log::warning("took the run folder over from {}, which is gone", holder->name());
      return;
    }
    if (verdict != Verdict::gone) std::this_thread::sleep_for(milliseconds(50));
  }
}

RunLease::~RunLease() {
  {
    const std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ended_.notify_all();
  thread_.join();
  if (is_ours()) ::unlink(path_.c_str());
  ::close(descriptor_);
}

void RunLease::beat() {
  std::unique_lock lock(mutex_);
  while (!ended_.wait_for(lock, times_.heartbeat, [this] { return ending_; })) {
    // The time of the file server, not ours. A failure shows as a missing heartbeat.
    futimens(descriptor_, nullptr);
  }
}

bool RunLease::is_ours() const {
  struct stat there {
  }, ours{};
  if (stat(path_.c_str(), &there) != 0) return errno != ENOENT;  // what can't be asked now isn't lost
  return fstat(descriptor_, &ours) == 0 && there.st_dev == ours.st_dev && there.st_ino == ours.st_ino;
}

void RunLease::require_held() const {
  if (is_ours()) return;
  std::string by = "its lease is gone";
  if (const auto holder = read_holder(path_)) by = fmt::format("{} took it over", holder->name());
  throw Error(ErrorKind::usage,
              fmt::format("writing into '{}': it is no longer this run's: {}", path_.parent_path().string(), by),
              "a run that stood still for long is taken for lost; the other one goes on from its newest checkpoint");
}

}  // namespace lorashard
