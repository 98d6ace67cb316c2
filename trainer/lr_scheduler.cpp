#include "trainer/lr_scheduler.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dist/error.h"

namespace lorashard {
namespace {

// The order of the operations below is the references' own: it decides the last bit.

double warmup(int64_t update, int64_t warmup_steps) {
  return double(update) / double(std::max<int64_t>(1, warmup_steps));
}

double progress_after_warmup(const LrSchedulerOptions& o, int64_t update) {
  return double(update - o.warmup_steps) / double(std::max<int64_t>(1, o.max_train_steps - o.warmup_steps));
}

double linear(const LrSchedulerOptions& o, int64_t update) {
  if (update < o.warmup_steps) return warmup(update, o.warmup_steps);
  const double left =
      double(o.max_train_steps - update) / double(std::max<int64_t>(1, o.max_train_steps - o.warmup_steps));
  return std::max(0.0, left);
}

double above_min(double factor, double min_lr_ratio) {
  return std::max(0.0, factor * (1.0 - min_lr_ratio) + min_lr_ratio);
}

/// Half a period of the cosine, from 1 to 0.
double half_cosine(double progress) { return 0.5 * (1.0 + std::cos(std::numbers::pi * 0.5 * 2.0 * progress)); }

/// Also cosine_with_min_lr. diffusers gives num_cycles to cosine_with_restarts only; half a period is its default here.
double cosine(const LrSchedulerOptions& o, int64_t update) {
  if (update < o.warmup_steps) return warmup(update, o.warmup_steps);
  return above_min(half_cosine(progress_after_warmup(o, update)), o.min_lr_ratio);
}

double cosine_with_restarts(const LrSchedulerOptions& o, int64_t update) {
  if (update < o.warmup_steps) return warmup(update, o.warmup_steps);
  const double progress = progress_after_warmup(o, update);
  if (progress >= 1.0) return 0.0;
  const double in_cycle = std::fmod(double(o.num_cycles) * progress, 1.0);
  return std::max(0.0, 0.5 * (1.0 + std::cos(std::numbers::pi * in_cycle)));
}

double polynomial(const LrSchedulerOptions& o, double base, int64_t update) {
  const double lr_end = 1e-7;
  if (!(base > lr_end)) {
    throw Error(
        ErrorKind::usage,
        fmt::format("lr_scheduler 'polynomial' ends at {}: expected a learning_rate above it, got {}", lr_end, base),
        "raise optimizer.learning_rate or choose another lr_scheduler");
  }
  if (update < o.warmup_steps) return warmup(update, o.warmup_steps);
  // diffusers divides by zero at the end of a run that is all warmup; the end rate is what its next step gives.
  if (update > o.max_train_steps || o.max_train_steps == o.warmup_steps) return lr_end / base;
  const double decay_steps = double(o.max_train_steps - o.warmup_steps);
  const double remaining = 1.0 - double(update - o.warmup_steps) / decay_steps;
  return ((base - lr_end) * std::pow(remaining, o.power) + lr_end) / base;
}

double warmup_stable_decay(const LrSchedulerOptions& o, int64_t update) {
  if (update < o.warmup_steps) return above_min(warmup(update, o.warmup_steps), o.min_lr_ratio);
  const int64_t stable_until = o.max_train_steps - o.decay_steps;
  if (update < stable_until) return 1.0;
  if (update >= o.max_train_steps) return o.min_lr_ratio;
  return above_min(half_cosine(double(update - stable_until) / double(o.decay_steps)), o.min_lr_ratio);
}

double factor(const LrSchedulerOptions& o, double base, int64_t update) {
  if (o.name == "constant") return 1.0;
  if (o.name == "constant_with_warmup") return update < o.warmup_steps ? warmup(update, o.warmup_steps) : 1.0;
  if (o.name == "linear") return linear(o, update);
  if (o.name == "cosine" || o.name == "cosine_with_min_lr") return cosine(o, update);
  if (o.name == "cosine_with_restarts") return cosine_with_restarts(o, update);
  if (o.name == "polynomial") return polynomial(o, base, update);
  if (o.name == "warmup_stable_decay") return warmup_stable_decay(o, update);
  throw Error(ErrorKind::usage,
              fmt::format("lr_scheduler '{}': expected constant, constant_with_warmup, linear, cosine, "
                          "cosine_with_restarts, polynomial, cosine_with_min_lr or warmup_stable_decay",
                          o.name));
}

}  // namespace

double learning_rate(const LrSchedulerOptions& options, double base, int64_t update) {
  return base * factor(options, base, update);
}

std::vector<double> learning_rates(const LrSchedulerOptions& options, double base, const std::vector<double>& bases,
                                   int64_t update) {
  const double common = factor(options, base, update);
  std::vector<double> rates;
  for (double own : bases) rates.push_back(own * common);
  return rates;
}

}  // namespace lorashard
