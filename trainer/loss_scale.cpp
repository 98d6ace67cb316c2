#include "trainer/loss_scale.h"

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr double kGrowth = 2, kBackoff = 0.5;
constexpr double kLargest = 0x1p40;  // far above what any fp16 gradient allows, far below where products overflow

bool is_power_of_two(double x) {
  int exponent = 0;
  return std::frexp(x, &exponent) == 0.5;
}

}  // namespace

LossScale::LossScale(bool dynamic, double initial, int64_t growth_interval)
    : dynamic_(dynamic), value_(dynamic ? initial : 1), growth_interval_(growth_interval) {
  LORASHARD_CHECK(is_power_of_two(value_) && growth_interval >= 1, "loss scale {}, growth interval {}", value_,
                  growth_interval);
}

void LossScale::update(bool skipped) {
  if (!dynamic_) return;
  if (skipped) {
    value_ *= kBackoff;
    clean_steps_ = 0;
  } else if (++clean_steps_ == growth_interval_) {
    if (value_ < kLargest) value_ *= kGrowth;
    clean_steps_ = 0;
  }
}

void LossScale::restore(double value, int64_t clean_steps) {
  LORASHARD_CHECK(dynamic_, "a loss scale of fp32 or bf16 has no state");
  if (!is_power_of_two(value) || clean_steps < 0 || clean_steps >= growth_interval_) {
    throw Error(ErrorKind::bad_data,
                fmt::format("restoring the loss scale: expected a power of two and a count below {}, found {} and {}",
                            growth_interval_, value, clean_steps));
  }
  value_ = value;
  clean_steps_ = clean_steps;
}

void LossScale::load(const NamedState& saved) {
  require_same_names(saved, state(), "the loss scale");
  restore(std::get<double>(saved.scalars.at("value")), std::get<int64_t>(saved.scalars.at("clean_steps")));
}

}  // namespace lorashard
