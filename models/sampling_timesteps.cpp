#include "models/sampling_timesteps.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>

#include "dist/error.h"

namespace lorashard {

std::vector<double> linspace(double start, double stop, int64_t count) {
  std::vector<double> values(static_cast<size_t>(count), start);
  if (count < 2) return values;
  const double step = (stop - start) / static_cast<double>(count - 1);
  for (int64_t i = 0; i < count; ++i) values[static_cast<size_t>(i)] = static_cast<double>(i) * step + start;
  values.back() = stop;
  return values;
}

std::vector<double> arange_to_zero(double start, double step) {
  const auto count = static_cast<int64_t>(std::ceil(start / step));
  const double difference = (start - step) - start;  // numpy continues its first difference
  std::vector<double> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(start + static_cast<double>(i) * difference);
  return values;
}

void round_all(std::vector<double>& values) {
  for (double& value : values) value = std::nearbyint(value);
}

std::vector<double> spaced_timesteps(const std::string& spacing, int64_t num_train_timesteps, int64_t count,
                                     int64_t steps_offset) {
  const auto steps = static_cast<double>(num_train_timesteps);
  std::vector<double> timesteps;
  if (spacing == "linspace") {
    timesteps = linspace(0, steps - 1, count);
    std::reverse(timesteps.begin(), timesteps.end());
  } else if (spacing == "leading") {
    for (int64_t i = count; i-- > 0;)
      timesteps.push_back(static_cast<double>(i * (num_train_timesteps / count) + steps_offset));
  } else if (spacing == "trailing") {
    timesteps = arange_to_zero(steps, steps / static_cast<double>(count));
    round_all(timesteps);
    for (double& timestep : timesteps) timestep -= 1;
  } else {
    throw Error(
        ErrorKind::bad_data,
        fmt::format("sampling: timestep_spacing '{}' is unknown; expected leading, linspace or trailing", spacing),
        "set timestep_spacing in scheduler/scheduler_config.json of the base model");
  }
  return timesteps;
}

std::vector<float> train_sigmas(const std::vector<float>& alphas_cumprod) {
  std::vector<float> sigmas;
  for (const float alpha : alphas_cumprod) sigmas.push_back(std::sqrt((1 - alpha) / alpha));
  return sigmas;
}

double interpolate(double position, const std::vector<float>& values) {
  const auto last = static_cast<double>(values.size() - 1);
  if (position <= 0) return values.front();
  if (position >= last) return values.back();
  const auto below = static_cast<size_t>(position);
  const double low = values[below], high = values[below + 1];
  return (high - low) * (position - static_cast<double>(below)) + low;
}

std::vector<double> karras_sigmas(double sigma_max, double sigma_min, int64_t count) {
  constexpr double kRho = 7;
  const double low = std::pow(sigma_min, 1 / kRho), high = std::pow(sigma_max, 1 / kRho);
  std::vector<double> sigmas;
  for (const double ramp : linspace(0, 1, count)) sigmas.push_back(std::pow(high + ramp * (low - high), kRho));
  return sigmas;
}

double sigma_to_timestep(double sigma, const std::vector<float>& train_sigmas) {
  const double log_sigma = std::log(std::max(sigma, 1e-10));
  // The last timestep that is not noisier, but one that has a next.
  size_t low = 0;
  for (size_t i = 0; i < train_sigmas.size(); ++i)
    if (log_sigma >= std::log(train_sigmas[i])) low = i;
  low = std::min(low, train_sigmas.size() - 2);
  const float log_low = std::log(train_sigmas[low]), log_high = std::log(train_sigmas[low + 1]);
  const double weight = std::clamp((log_low - log_sigma) / (log_low - log_high), 0.0, 1.0);
  return (1 - weight) * static_cast<double>(low) + weight * static_cast<double>(low + 1);
}

}  // namespace lorashard
