#include "data/bucket_manager.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>
#include <utility>

#include "dist/error.h"

namespace lorashard {
namespace {

double aspect_ratio(ImageSize size) { return static_cast<double>(size.width) / static_cast<double>(size.height); }

/// Python's int(x + 0.5).
int64_t rounded(double x) { return static_cast<int64_t>(x + 0.5); }

std::vector<ImageSize> make_resolutions(const BucketOptions& options) {
  const int64_t area = options.resolution * options.resolution, step = options.bucket_reso_steps;
  std::set<std::pair<int64_t, int64_t>> sizes;  // width, height
  const int64_t square = options.resolution / step * step;
  sizes.emplace(square, square);
  for (int64_t width = options.min_bucket_reso; width <= options.max_bucket_reso; width += step) {
    const int64_t height = std::min(options.max_bucket_reso, area / width / step * step);
    if (height < options.min_bucket_reso) continue;
    sizes.emplace(width, height);
    sizes.emplace(height, width);
  }
  std::vector<ImageSize> resolutions;
  for (const auto& [width, height] : sizes) resolutions.push_back({.height = height, .width = width});
  return resolutions;
}

}  // namespace

BucketManager::BucketManager(const BucketOptions& options)
    : options_(options), resolutions_(make_resolutions(options)) {}

Framing BucketManager::select_bucket(ImageSize size, const std::string& name) const {
  if (options_.bucket_no_upscale) return shrink(size, name);
  const double ratio = aspect_ratio(size);
  ImageSize nearest = resolutions_.front();
  for (const ImageSize& candidate : resolutions_) {
    if (candidate.height == size.height && candidate.width == size.width) return covering(size, candidate);
    if (std::abs(aspect_ratio(candidate) - ratio) < std::abs(aspect_ratio(nearest) - ratio)) nearest = candidate;
  }
  return covering(size, nearest);
}

Framing BucketManager::shrink(ImageSize size, const std::string& name) const {
  const int64_t area = options_.resolution * options_.resolution, step = options_.bucket_reso_steps;
  const double ratio = aspect_ratio(size);
  const auto down = [step](double x) { return rounded(x) / step * step; };
  ImageSize resized = size;
  if (size.width * size.height > area) {
    const double wanted_width = std::sqrt(static_cast<double>(area) * ratio),
                 wanted_height = static_cast<double>(area) / wanted_width;
    // Either side is made a multiple of the step: the one that keeps the ratio better.
    const int64_t width = down(wanted_width), height_to_it = down(static_cast<double>(width) / ratio);
    const int64_t height = down(wanted_height), width_to_it = down(static_cast<double>(height) * ratio);
    const auto error = [ratio](int64_t w, int64_t h) {
      return w > 0 && h > 0 ? std::abs(aspect_ratio({.height = h, .width = w}) - ratio)
                            : std::numeric_limits<double>::infinity();
    };
    resized = error(width, height_to_it) < error(width_to_it, height)
                  ? ImageSize{rounded(static_cast<double>(width) / ratio), width}
                  : ImageSize{height, rounded(static_cast<double>(height) * ratio)};
  }
  const ImageSize bucket{.height = resized.height / step * step, .width = resized.width / step * step};
  if (bucket.height == 0 || bucket.width == 0) {
    throw Error(
        ErrorKind::bad_data,
        fmt::format(
            "choosing the bucket of '{}': of its {} x {} pixels {} x {} are left at 'data.resolution' = {}, less than "
            "one step of 'data.bucket_reso_steps' = {}",
            name, size.width, size.height, resized.width, resized.height, options_.resolution, step),
        "leave the picture out, or set data.bucket_no_upscale = false, which resizes every picture to cover a bucket");
  }
  return {.resized = resized, .cropped = bucket};
}

Framing covering(ImageSize size, ImageSize bucket) {
  const double scale = aspect_ratio(size) > aspect_ratio(bucket)
                           ? static_cast<double>(bucket.height) / static_cast<double>(size.height)
                           : static_cast<double>(bucket.width) / static_cast<double>(size.width);
  return {.resized = {.height = rounded(static_cast<double>(size.height) * scale),
                      .width = rounded(static_cast<double>(size.width) * scale)},
          .cropped = bucket};
}

}  // namespace lorashard
