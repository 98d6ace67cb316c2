#include "data/timestep_distribution.h"

#include <algorithm>
#include <utility>

#include "dist/error.h"

namespace lorashard {
namespace {

void require_range(const std::string& begin_key, int64_t begin, const std::string& end_key, int64_t end, int64_t count) {
  if (begin >= 0 && begin < end && end <= count) return;
  throw Error(ErrorKind::usage,
              fmt::format("the timesteps to train on: '{}' = {} and '{}' = {}; expected a range within 0 to {}", begin_key,
                          begin, end_key, end, count),
              "the end doesn't belong to the range, and the base model's noise schedule has that many timesteps");
}

/// The timesteps whose weight is multiplied: [first, second).
std::pair<int64_t, int64_t> biased(const TimestepOptions& options) {
  const int64_t count = options.num_train_timesteps;
  const auto portion = static_cast<int64_t>(options.bias_portion * static_cast<double>(count));
  if (options.bias_strategy == "earlier") return {0, portion};
  if (options.bias_strategy == "later") return {portion == 0 ? 0 : count - portion, count};  // Python's slice(-0, None)
  LORASHARD_CHECK(options.bias_strategy == "range", "timestep_bias_strategy '{}'", options.bias_strategy);
  require_range("timesteps.timestep_bias_begin", options.bias_begin, "timesteps.timestep_bias_end", options.bias_end,
                count);
  return {options.bias_begin, options.bias_end};
}

}  // namespace

TimestepDistribution::TimestepDistribution(const TimestepOptions& options) : begin_(options.min_timestep) {
  const int64_t end = options.max_timestep == 0 ? options.num_train_timesteps : options.max_timestep;
  require_range("timesteps.min_timestep", begin_, "timesteps.max_timestep", end, options.num_train_timesteps);
  count_ = end - begin_;
  if (options.bias_strategy == "none") return;
  const auto [first, last] = biased(options);
  double sum = 0;
  for (int64_t t = begin_; t < end; ++t) {
    sum += t >= first && t < last ? options.bias_multiplier : 1.0;
    cumulative_.push_back(sum);
  }
}

int64_t TimestepDistribution::draw(uint64_t seed, uint64_t slot, Purpose purpose) const {
  if (cumulative_.empty()) return begin_ + uniform_int(seed, slot, purpose, count_);
  const double wanted = uniform(seed, slot, purpose) * cumulative_.back();
  const auto found = std::upper_bound(cumulative_.begin(), cumulative_.end(), wanted);  // the first above it
  return begin_ + std::min<int64_t>(found - cumulative_.begin(), count_ - 1);  // the product may round up to the sum
}

}  // namespace lorashard
