#include "dist/pace_monitor.h"

#include <fmt/core.h>

#include <algorithm>
#include <utility>

namespace lorashard {

PaceMonitor::PaceMonitor(std::vector<std::string> places, double slow_pace) : slow_pace_(slow_pace) {
  for (std::string& place : places) ranks_.emplace_back().place = std::move(place);
}

void PaceMonitor::beat(int number, const Beat& beat) {
  Rank& rank = ranks_[static_cast<size_t>(number)];
  if (beat.step < 2) return;
  if (!std::exchange(rank.heard, true)) rank.first = beat;
  rank.last = beat;
}

std::vector<std::string> PaceMonitor::judge() {
  std::vector<std::string> said;
  const bool is_full =
      std::all_of(ranks_.begin(), ranks_.end(), [](const Rank& rank) { return rank.heard && rank.steps() >= kSteps; });
  if (slow_pace_ <= 0 || !is_full) return said;
  for (Rank& rank : ranks_) {
    const double others = median_of_others(rank);
    if (rank.micro_batches() == 0 || others <= 0) continue;
    const double share = static_cast<double>(rank.micro_batches()) / static_cast<double>(rank.steps());
    const double waste = (rank.pace() - others) * share;  // of a step
    const bool is_slow = rank.pace() >= slow_pace_ * others && waste >= kWorthSaying;
    const bool is_fast = rank.pace() < (1 + (slow_pace_ - 1) / 2) * others || waste < kWorthSaying / 2;
    if (is_slow && !rank.slow) {
      said.push_back(fmt::format(
          "{} is slow: in steps {} to {} a micro-batch took it {:.3f} s, the others {:.3f} s; they wait {:.3f} s for it in "
          "every step",
          rank.place, rank.first.step, rank.last.step, rank.pace(), others, waste));
    } else if (is_fast && rank.slow) {
      said.push_back(fmt::format("{} is as fast as the others again, up to step {}", rank.place, rank.last.step));
    }
    rank.slow = is_slow || (rank.slow && !is_fast);
  }
  for (Rank& rank : ranks_) rank.first = rank.last;
  return said;
}

double PaceMonitor::median_of_others(const Rank& rank) const {
  std::vector<double> paces;
  for (const Rank& other : ranks_) {
    if (&other != &rank && other.micro_batches() > 0) paces.push_back(other.pace());
  }
  if (paces.empty()) return 0;
  const auto middle = paces.begin() + static_cast<std::ptrdiff_t>((paces.size() - 1) / 2);
  std::nth_element(paces.begin(), middle, paces.end());
  return *middle;
}

}  // namespace lorashard
