// The log: one sink on stderr, lines prefixed with the rank when there is more than one. Nothing else in the
// libraries prints. Thread-safe. info() speaks on rank 0 only; warning() and error() on every rank.
#pragma once
#include <fmt/core.h>

#include <string>
#include <string_view>
#include <utility>

namespace lorashard::log {

enum class Level { debug, info, warning, error };

/// Called once the ranks are known; before that every line is printed without a prefix.
void set_rank(int rank, int world_size);
/// Lines below `level` are dropped. Default: info, or debug when the environment has LORASHARD_LOG=debug.
void set_level(Level level);
void write(Level level, std::string_view line);

/// A line that is rewritten in place (progress) while stderr is a terminal; elsewhere it is printed at most every
/// 30 s. Rank 0 only. An empty text ends the line.
void status(std::string_view text);

template <class... Args> void debug(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::debug, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args> void info(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::info, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args> void warning(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::warning, fmt::format(f, std::forward<Args>(args)...));
}
template <class... Args> void error(fmt::format_string<Args...> f, Args&&... args) {
  write(Level::error, fmt::format(f, std::forward<Args>(args)...));
}

}  // namespace lorashard::log
