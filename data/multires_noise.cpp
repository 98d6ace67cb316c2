#include "data/multires_noise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

constexpr uint32_t kLevelShift = 16;  // the purpose's word of the counter: the level above the purpose

/// Where a bilinear resize (align_corners = false) of `from` pixels takes each of `to` pixels from: `first` and the one after it.
struct Tap {
  int64_t first, second;
  double weight;  // of second
};

std::vector<Tap> bilinear_taps(int64_t from, int64_t to) {
  std::vector<Tap> taps;
  const double scale = static_cast<double>(from) / static_cast<double>(to);
  for (int64_t i = 0; i < to; ++i) {
    const double place = std::max(scale * (static_cast<double>(i) + 0.5) - 0.5, 0.0);
    const auto first = static_cast<int64_t>(place);
    taps.push_back({first, std::min(first + 1, from - 1), place - static_cast<double>(first)});
  }
  return taps;
}

/// sum += factor * level, brought to the size of the sum.
void add_resized(std::vector<double>& sum, int64_t height, int64_t width, const std::vector<float>& level, int64_t level_height,
                 int64_t level_width, double factor) {
  const std::vector<Tap> rows = bilinear_taps(level_height, height), columns = bilinear_taps(level_width, width);
  const int64_t channels = static_cast<int64_t>(sum.size()) / (height * width);
  double* out = sum.data();
  for (int64_t channel = 0; channel < channels; ++channel) {
    const float* plane = level.data() + channel * level_height * level_width;
    for (const Tap& y : rows) {
      const float *above = plane + y.first * level_width, *below = plane + y.second * level_width;
      for (const Tap& x : columns) {
        const double top = above[x.first] + x.weight * (static_cast<double>(above[x.second]) - above[x.first]);
        const double bottom = below[x.first] + x.weight * (static_cast<double>(below[x.second]) - below[x.first]);
        *out++ += factor * (top + y.weight * (bottom - top));
      }
    }
  }
}

/// With n - 1 in the denominator, as torch's std().
double standard_deviation(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  double mean = 0, squares = 0;
  for (const double value : values) mean += value;
  mean /= count;
  for (const double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / (count - 1));
}

}  // namespace

void add_multires_noise(std::span<float> noise, int64_t channels, int64_t height, int64_t width, const MultiresNoiseOptions& options,
                        uint64_t seed, uint64_t slot, bool class_image) {
  LORASHARD_CHECK(static_cast<int64_t>(noise.size()) == channels * height * width && noise.size() > 1, "noise of {} elements",
                  noise.size());
  const auto purpose = static_cast<uint32_t>(purpose_of(Purpose::multires_noise, class_image));
  std::vector<double> sum(noise.begin(), noise.end());
  std::vector<float> level;
  double factor = 1;
  for (int64_t i = 0; i < options.iterations; ++i, factor *= options.discount) {
    // Not always by half: by a number between 2 and 4, to the power of the level.
    const double ratio =
        2 + 2 * uniform_at(seed, slot, purpose_of(Purpose::multires_noise_ratio, class_image), static_cast<uint32_t>(i));
    const auto smaller = [shrink = std::pow(ratio, static_cast<double>(i))](int64_t side) {
      return std::max<int64_t>(1, static_cast<int64_t>(static_cast<double>(side) / shrink));
    };
    const int64_t level_height = smaller(height), level_width = smaller(width);
    level.resize(static_cast<size_t>(channels * level_height * level_width));
    fill_normal(level, seed, slot, static_cast<Purpose>(purpose | static_cast<uint32_t>(i) << kLevelShift));
    add_resized(sum, height, width, level, level_height, level_width, factor);
    if (level_height == 1 || level_width == 1) break;
  }
  const double deviation = standard_deviation(sum);
  std::transform(sum.begin(), sum.end(), noise.begin(), [=](double value) { return static_cast<float>(value / deviation); });
}

}  // namespace lorashard
