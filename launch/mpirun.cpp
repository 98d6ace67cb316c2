#include "launch/mpirun.h"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "dist/error.h"
#include "dist/log.h"

extern char** environ;

namespace lorashard {
namespace {

volatile std::sig_atomic_t mpirun_pid = 0;

// mpirun answers TERM and INT by killing its ranks after two seconds; USR1 it passes on, and they stop with a checkpoint.
void forward_signal(int signal) {
  if (mpirun_pid <= 0) return;
  kill(mpirun_pid, signal == SIGTERM || signal == SIGINT ? SIGUSR1 : signal);
}

sigset_t forwarded_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  return set;
}

void forward_signals() {
  struct sigaction action = {};
  action.sa_handler = forward_signal;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) sigaction(signal, &action, nullptr);
}

// In a process group of its own: Ctrl-C in a terminal reaches us alone, and we turn it into a request.
pid_t spawn_in_own_group(std::vector<std::string> command, const sigset_t& signal_mask) {
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setsigmask(&attributes, &signal_mask);
  pid_t pid = 0;
  const int failed = posix_spawnp(&pid, argv[0], nullptr, &attributes, argv.data(), environ);
  posix_spawnattr_destroy(&attributes);
  if (failed == 0) return pid;
  errno = failed;
  const Error error = errno_error("starting mpirun", /*missing_is_usage=*/true);
  throw Error(error.kind(), error.message(), "install Open MPI (Debian: openmpi-bin)");
}

std::vector<std::string> mpirun_command(int num_ranks, const std::string& program, const std::vector<std::string>& arguments) {
  // --quiet: the ranks have said what was wrong; mpirun's page of advice would bury it. No binding: threads_per_rank rules.
  std::vector<std::string> command = {"mpirun", "--quiet", "--oversubscribe", "--bind-to", "none", "-n", std::to_string(num_ranks)};
  if (geteuid() == 0) command.insert(command.begin() + 1, "--allow-run-as-root");
  command.push_back(program);
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

}  // namespace

int run_under_mpirun(int num_ranks, const std::string& program, const std::vector<std::string>& arguments) {
  // Held back until there is an mpirun to pass them to.
  const sigset_t held = forwarded_signals();
  sigset_t before;
  sigprocmask(SIG_BLOCK, &held, &before);
  forward_signals();
  mpirun_pid = spawn_in_own_group(mpirun_command(num_ranks, program, arguments), before);
  sigprocmask(SIG_SETMASK, &before, nullptr);

  int status = 0;
  while (waitpid(mpirun_pid, &status, 0) < 0) {
    if (errno != EINTR) throw errno_error("waiting for mpirun");
  }
  mpirun_pid = 0;
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (code > 128) {
    log::error("a rank was killed by signal {}\nhint: started again, the run goes on from the newest whole checkpoint", code - 128);
    return exit_code(ErrorKind::rank_lost);
  }
  return code;
}

}  // namespace lorashard
