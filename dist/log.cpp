#include "dist/log.h"

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <mutex>

namespace lorashard::log {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::seconds kStatusEvery{30};

spdlog::level::level_enum to_spdlog(Level level) {
  switch (level) {
    case Level::debug:
      return spdlog::level::debug;
    case Level::info:
      return spdlog::level::info;
    case Level::warning:
      return spdlog::level::warn;
    case Level::error:
      return spdlog::level::err;
  }
  return spdlog::level::info;
}

/// Everything that prints, under one mutex.
class Printer {
 public:
  Printer() : terminal_(isatty(STDERR_FILENO) == 1), logger_("lorashard", make_sink()) {
    const char* wanted = std::getenv("LORASHARD_LOG");
    const bool debug = wanted != nullptr && std::string_view(wanted) == "debug";
    logger_.set_pattern(debug ? "%^%H:%M:%S.%e %v%$" : "%^%v%$");
    logger_.set_level(debug ? spdlog::level::debug : spdlog::level::info);
    logger_.flush_on(spdlog::level::trace);
  }

  void set_rank(int rank, int world_size) {
    const std::lock_guard lock(mutex_);
    rank_ = rank;
    prefix_ = world_size > 1 ? fmt::format("rank {}: ", rank) : "";
  }

  void set_level(Level level) { logger_.set_level(to_spdlog(level)); }

  void write(Level level, std::string_view text) {
    const std::lock_guard lock(mutex_);
    if (level == Level::info && rank_ != 0) return;
    if (!logger_.should_log(to_spdlog(level))) return;
    if (status_shown_) print("\r\033[K");
    // Every line gets the prefix, so that one rank's lines can be picked out of the log of all.
    const char* name = level == Level::warning ? "warning: " : level == Level::error ? "error: " : "";
    size_t start = 0;
    do {
      const size_t end = std::min(text.find('\n', start), text.size());
      logger_.log(to_spdlog(level), "{}{}{}", prefix_, name, text.substr(start, end - start));
      name = "";
      start = end + 1;
    } while (start < text.size());
    if (status_shown_) print(status_);
  }

  void status(std::string_view text) {
    const std::lock_guard lock(mutex_);
    if (rank_ != 0 || !logger_.should_log(spdlog::level::info)) return;
    terminal_ ? status_on_terminal(text) : status_in_log(text);
  }

 private:
  static spdlog::sink_ptr make_sink() {
    auto sink = std::make_shared<spdlog::sinks::stderr_color_sink_mt>();
    sink->set_color(spdlog::level::info, "");  // plain
    return sink;
  }

  void print(std::string_view text) {
    std::fwrite(text.data(), 1, text.size(), stderr);
    std::fflush(stderr);
  }

  void status_on_terminal(std::string_view text) {
    if (text.empty()) {
      if (status_shown_) print("\n");
      status_shown_ = false;
      return;
    }
    // A line longer than the terminal would wrap and could not be rewritten.
    winsize size{};
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    status_ = text.substr(0, known ? size.ws_col - 1u : 79u);
    status_shown_ = true;
    print("\r\033[K" + status_);
  }

  void status_in_log(std::string_view text) {
    const auto now = Clock::now();
    if (text.empty()) {
      // The last state is worth a line of its own.
      if (!status_.empty()) logger_.info("{}{}", prefix_, status_);
      status_.clear();
      printed_once_ = false;
    } else if (!printed_once_ || now - last_printed_ >= kStatusEvery) {
      logger_.info("{}{}", prefix_, text);
      status_.clear();
      printed_once_ = true;
      last_printed_ = now;
    } else {
      status_ = text;
    }
  }

  const bool terminal_;
  std::mutex mutex_;
  spdlog::logger logger_;
  int rank_ = 0;
  std::string prefix_, status_;
  bool status_shown_ = false, printed_once_ = false;
  Clock::time_point last_printed_;
};

Printer& printer() {
  static Printer* const instance = new Printer;  // never destroyed: threads may log until the very end
  return *instance;
}

}  // namespace

void set_rank(int rank, int world_size) { printer().set_rank(rank, world_size); }
void set_level(Level level) { printer().set_level(level); }
void write(Level level, std::string_view line) { printer().write(level, line); }
void status(std::string_view text) { printer().status(text); }

}  // namespace lorashard::log
