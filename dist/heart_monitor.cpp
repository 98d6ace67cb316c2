#include "dist/heart_monitor.h"

#include <fmt/core.h>

#include <algorithm>

namespace lorashard {
namespace {

// A beat may come this many heartbeats late before its rank counts as silent where all ranks seem stuck.
constexpr double kFreshBeats = 3;

}  // namespace

HeartMonitor::HeartMonitor(std::vector<std::string> places, const std::vector<int>& watched,
                           const HealthOptions& options, double now)
    : options_(options), sees_all_(watched.size() == places.size()), stuck_since_(now) {
  for (std::string& place : places) {
    Rank& rank = ranks_.emplace_back();
    rank.place = std::move(place);
    rank.last_beat = rank.entered = now;
  }
  for (const int rank : watched) ranks_[static_cast<size_t>(rank)].watched = true;
}

void HeartMonitor::beat(int number, const Beat& beat, double now) {
  Rank& rank = ranks_[static_cast<size_t>(number)];
  if (beat.progress != rank.beat.progress) rank.entered = now;
  if (beat.long_work || rank.beat.long_work) rank.long_work_until = now;
  rank.beat = beat;
  rank.last_beat = now;
}

void HeartMonitor::closed(int number, double now) {
  Rank& rank = ranks_[static_cast<size_t>(number)];
  if (!rank.closed) rank.closed_at = now;
  rank.closed = true;
}

void HeartMonitor::left(int number) { ranks_[static_cast<size_t>(number)].left = true; }

void HeartMonitor::forgive(double seconds) {
  for (Rank& rank : ranks_) {
    rank.last_beat += seconds;
    rank.closed_at += seconds;
    rank.entered += seconds;
    rank.long_work_until += seconds;
  }
  stuck_since_ += seconds;
}

HeartMonitor::Verdict HeartMonitor::judge(double now) {
  Verdict verdict;
  for (Rank& rank : ranks_) {
    if (rank.watched && !rank.left) judge_lateness(rank, now, verdict);
  }
  verdict.end = end_of_lost(now);
  if (verdict.end.empty() && sees_all_) verdict.end = end_of_stuck(now);
  return verdict;
}

std::string HeartMonitor::last_seen(const Rank& rank) const {
  const std::string step = rank.beat.step > 0 ? fmt::format("in step {}", rank.beat.step) : "before the first step";
  if (rank.beat.collective == Collective::none) return step;
  return fmt::format("{}, in {}", step, name_of(rank.beat.collective));
}

// Who has waited longest in a collective that `rank` hasn't come to.
const HeartMonitor::Rank* HeartMonitor::longest_waiting_for(const Rank& rank) const {
  const Rank* longest = nullptr;
  if (!sees_all_) return longest;
  for (const Rank& other : ranks_) {
    if (other.left || other.beat.collective == Collective::none || other.beat.number <= rank.beat.number) continue;
    if (longest == nullptr || other.entered < longest->entered) longest = &other;
  }
  return longest;
}

double HeartMonitor::waited(const Rank& waiting, const Rank& rank, double now) {
  return rank.beat.long_work ? 0 : now - std::max(waiting.entered, rank.long_work_until);
}

void HeartMonitor::judge_lateness(Rank& rank, double now, Verdict& verdict) const {
  const double silent = now - rank.last_beat, limit = options_.straggler_warning_s;
  const Rank* waiting = longest_waiting_for(rank);
  const bool is_silent = silent > std::max(limit, options_.heartbeat_s * kFreshBeats);
  const bool is_behind = waiting != nullptr && waited(*waiting, rank, now) > limit;
  if (is_silent || is_behind) {
    if (rank.warned) return;
    rank.warned = true;
    rank.late_since = is_silent ? rank.last_beat : now - waited(*waiting, rank, now);
    if (silent > options_.heartbeat_s * 2) {
      verdict.warnings.push_back(fmt::format(
          "{} is silent: no heartbeat for {:.1f} s; it was {}. The run ends when it stays silent for {:g} s",
          rank.place, silent, last_seen(rank), options_.collective_timeout_s));
    } else {
      verdict.warnings.push_back(fmt::format(
          "{} is late: the others have waited in {} for {:.1f} s. Its last heartbeat, {:.1f} s ago, was {}", rank.place,
          name_of(waiting->beat.collective), waited(*waiting, rank, now), silent, last_seen(rank)));
    }
  } else if (rank.warned && !rank.closed) {
    rank.warned = false;
    verdict.notes.push_back(fmt::format("{} is back after {:.1f} s", rank.place, now - rank.late_since));
  }
}

std::string HeartMonitor::end_of_lost(double now) const {
  std::string lost;
  for (const Rank& rank : ranks_) {
    if (!rank.watched || rank.left) continue;
    const double silent = now - rank.last_beat;
    std::string why;
    if (rank.closed && now - rank.closed_at > std::min(kClosedGrace, options_.collective_timeout_s)) {
      why = fmt::format("its process is gone; its last heartbeat, {:.1f} s ago, was {}", silent, last_seen(rank));
    } else if (silent > options_.collective_timeout_s) {
      why = fmt::format("no heartbeat for {:.1f} s (collective_timeout_s = {:g}); it was {}", silent,
                        options_.collective_timeout_s, last_seen(rank));
    } else if (const Rank* waiting = options_.work_timeout_s > 0 ? longest_waiting_for(rank) : nullptr;
               waiting != nullptr && waited(*waiting, rank, now) > options_.work_timeout_s) {
      why = fmt::format(
          "it beats, but the others have waited for it in {} for {:.1f} s (work_timeout_s = {:g}); it was {}",
          name_of(waiting->beat.collective), waited(*waiting, rank, now), options_.work_timeout_s, last_seen(rank));
    }
    if (!why.empty()) lost += fmt::format("{}{} is lost: {}", lost.empty() ? "" : "\n", rank.place, why);
  }
  return lost;
}

std::string HeartMonitor::end_of_stuck(double now) {
  uint64_t progress = 0;
  bool all_wait = true, any = false;
  for (const Rank& rank : ranks_) {
    if (rank.left) continue;
    any = true;
    progress += rank.beat.progress;
    const bool fresh = !rank.closed && now - rank.last_beat <= options_.heartbeat_s * kFreshBeats;
    all_wait = all_wait && fresh && rank.beat.collective != Collective::none;
  }
  if (!any || !all_wait || progress != stuck_progress_) {
    stuck_since_ = now;
    stuck_progress_ = progress;
    return "";
  }
  if (now - stuck_since_ <= options_.collective_timeout_s) return "";
  std::string end =
      fmt::format("all ranks beat, but each has waited in a collective for {:.1f} s (collective_timeout_s = {:g}):",
                  now - stuck_since_, options_.collective_timeout_s);
  for (const Rank& rank : ranks_) {
    if (!rank.left) end += fmt::format("\n{}: {} (collective {})", rank.place, last_seen(rank), rank.beat.number);
  }
  return end;
}

}  // namespace lorashard
