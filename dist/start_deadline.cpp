#include "dist/start_deadline.h"

#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <initializer_list>
#include <string>

#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace {

constexpr auto kGoodbye = std::chrono::milliseconds(300);  // a log that nobody reads blocks who writes to it

const char* first_set(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    if (const char* value = std::getenv(name)) return value;
  }
  return nullptr;
}

std::string this_rank() {
  const char* rank = first_set({"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "SLURM_PROCID"});
  const char* size = first_set({"OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"});
  char host[256] = {};
  if (gethostname(host, sizeof host - 1) != 0) host[0] = '\0';
  return fmt::format("rank {} of {} ({})", rank == nullptr ? "?" : rank, size == nullptr ? "?" : size, host);
}

[[noreturn]] void leave(double seconds) {
  std::thread([seconds] {
    log::error(
        "{} has waited {:g} s for the others to start (start_timeout_s): one of them never came\nhint: a host that hangs, a "
        "program that isn't lorashard, or a network that lets no rank through; a rank missing in this list is it",
        this_rank(), seconds);
  }).detach();
  std::this_thread::sleep_for(kGoodbye);
  _exit(exit_code(ErrorKind::rank_lost));
}

}  // namespace

StartDeadline::StartDeadline(double seconds) {
  if (seconds <= 0 || first_set({"OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"}) == nullptr) return;
  sigset_t all, before;  // signals are the training thread's
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this, seconds] {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(lock, std::chrono::duration<double>(seconds), [this] { return met_; })) leave(seconds);
  });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

StartDeadline::~StartDeadline() {
  met();
  if (thread_.joinable()) thread_.join();
}

void StartDeadline::met() {
  const std::lock_guard lock(mutex_);
  met_ = true;
  changed_.notify_all();
}

}  // namespace lorashard
