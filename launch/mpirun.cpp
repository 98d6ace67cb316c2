#include "launch/mpirun.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "dist/error.h"
#include "dist/log.h"

namespace lorashard {
namespace {

constexpr auto kOrphanGrace = std::chrono::seconds(5);  // ranks leave by themselves within 1 s of mpirun's death

sigset_t stop_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGUSR1, SIGUSR2}) sigaddset(&set, signal);
  struct sigaction hangup = {};
  sigaction(SIGHUP, nullptr, &hangup);
  if (hangup.sa_handler != SIG_IGN) sigaddset(&set, SIGHUP);  // nohup means: go on without the terminal
  return set;
}

std::vector<std::string> mpirun_command(int num_ranks, const std::string& program,
                                        const std::vector<std::string>& arguments) {
  // --quiet: the ranks have said what was wrong; mpirun's page of advice would bury it. No binding: threads_per_rank
  // rules.
  std::vector<std::string> command = {"mpirun", "--quiet", "--oversubscribe",        "--bind-to",
                                      "none",   "-n",      std::to_string(num_ranks)};
  if (geteuid() == 0) command.insert(command.begin() + 1, "--allow-run-as-root");
  command.push_back(program);
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

// What the child does between fork and exec: system calls only. Own process group: Ctrl-C in a terminal reaches the
// launcher alone, which turns it into a request. Should the launcher be killed, mpirun gets TERM and takes its ranks
// along.
[[noreturn]] void become_mpirun(char* const* argv, const sigset_t& signal_mask, pid_t launcher, int error_pipe) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() == launcher) {
    sigprocmask(SIG_SETMASK, &signal_mask, nullptr);
    execvp(argv[0], argv);
  }
  const int failed = errno;
  if (write(error_pipe, &failed, sizeof failed) < 0) _exit(126);
  _exit(127);
}

pid_t spawn_mpirun(std::vector<std::string> command, const sigset_t& signal_mask) {
  std::vector<char*> argv;
  for (std::string& word : command) argv.push_back(word.data());
  argv.push_back(nullptr);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw errno_error("starting mpirun");
  const pid_t launcher = getpid();
  const pid_t pid = fork();
  if (pid < 0) throw errno_error("starting mpirun");
  if (pid == 0) become_mpirun(argv.data(), signal_mask, launcher, ends[1]);
  close(ends[1]);
  int failed = 0;
  const bool started = read(ends[0], &failed, sizeof failed) <= 0;  // exec closed the pipe
  close(ends[0]);
  if (started) return pid;
  waitpid(pid, nullptr, 0);
  errno = failed;
  const Error error = errno_error("starting mpirun", /*missing_is_usage=*/true);
  throw Error(error.kind(), error.message(), "install Open MPI (Debian: openmpi-bin)");
}

std::vector<pid_t> children() {
  std::vector<pid_t> found;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    const std::string name = entry.path().filename();
    if (name.find_first_not_of("0123456789") != std::string::npos) continue;
    std::string stat;
    std::getline(std::ifstream(entry.path() / "stat"), stat);
    const size_t end_of_name = stat.rfind(") ");  // "pid (any text) state parent ..."
    if (end_of_name == std::string::npos) continue;
    if (std::atoi(stat.c_str() + end_of_name + 4) == getpid()) found.push_back(std::stoi(name));
  }
  return found;
}

// Ranks whose mpirun is gone are our children (PR_SET_CHILD_SUBREAPER): wait for them, so that no two generations write
// one folder.
void outlive_orphans(bool at_once) {
  const auto deadline = std::chrono::steady_clock::now() + kOrphanGrace;
  for (;;) {
    const pid_t reaped = waitpid(-1, nullptr, WNOHANG);
    if (reaped > 0) continue;
    if (reaped < 0 && errno != EINTR) return;  // ECHILD: nobody is left
    if (at_once || std::chrono::steady_clock::now() > deadline) {
      for (const pid_t pid : children()) kill(pid, SIGKILL);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

Mpirun::Mpirun() : signals_(stop_signals()) {
  sigset_t held = signals_;
  sigaddset(&held, SIGCHLD);
  sigprocmask(SIG_BLOCK, &held, &before_);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
}

Mpirun::~Mpirun() { sigprocmask(SIG_SETMASK, &before_, nullptr); }

bool Mpirun::stop_requested() {
  const timespec at_once = {};
  for (int signal; (signal = sigtimedwait(&signals_, nullptr, &at_once)) > 0;) take(signal);
  return requests_ > 0;
}

void Mpirun::take(int signal) {
  const bool insists = signal == SIGTERM || signal == SIGINT;
  if (requests_ > 0 && !insists) return;
  if (++requests_ == 1) {
    log::info("asked to stop ({}): the ranks finish their step and write a checkpoint; once more kills them",
              strsignal(signal));
    if (pid_ > 0) kill(pid_, SIGUSR1);
  } else if (!killed_ && pid_ > 0) {
    log::warning("asked to stop again ({}): the ranks are killed; the newest checkpoint is whole", strsignal(signal));
    killed_ = true;
    kill(pid_, SIGKILL);
  }
}

int Mpirun::wait() {
  sigset_t awaited = signals_;
  sigaddset(&awaited, SIGCHLD);
  const timespec second = {.tv_sec = 1, .tv_nsec = 0};
  for (;;) {
    int status = 0;
    const pid_t ended = waitpid(-1, &status, WNOHANG);
    if (ended == pid_) return status;
    if (ended > 0) continue;
    const int signal = sigtimedwait(&awaited, nullptr, &second);
    if (signal > 0 && signal != SIGCHLD) take(signal);
    // mpirun drops what comes before it has started the ranks, so it is told again until they are gone.
    if (signal < 0 && errno == EAGAIN && requests_ > 0) kill(pid_, SIGUSR1);
  }
}

Mpirun::End Mpirun::end_of(int status) const {
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  const int stopped = exit_code(ErrorKind::stopped), lost = exit_code(ErrorKind::rank_lost);
  if (killed_) return {stopped, ""};
  if (requests_ > 0 && code == 128 + SIGUSR1) {
    log::info("stopped on request before the ranks were ready");
    return {stopped, ""};
  }
  if (WIFSIGNALED(status))
    return {lost, fmt::format("mpirun was killed by signal {} ({})", WTERMSIG(status), strsignal(WTERMSIG(status)))};
  if (code > 128) return {lost, fmt::format("a rank was killed by signal {} ({})", code - 128, strsignal(code - 128))};
  if (code == lost) return {lost, "a rank was lost"};
  // mpirun's own: it could not start the ranks, was told to end them, or one left without a word.
  if (code == 1) return {lost, "mpirun ended with exit code 1"};
  return {code, ""};
}

Mpirun::End Mpirun::run(int num_ranks, const std::string& program, const std::vector<std::string>& arguments) {
  if (stop_requested()) return {exit_code(ErrorKind::stopped), ""};
  pid_ = spawn_mpirun(mpirun_command(num_ranks, program, arguments), before_);
  const int status = wait();
  pid_ = 0;
  outlive_orphans(/*at_once=*/killed_);
  return end_of(status);
}

}  // namespace lorashard
