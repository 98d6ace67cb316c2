// The rules of aspect-ratio buckets between the keys of [data]. A key that would have no effect is refused, not
// ignored.
#include <fmt/core.h>

#include <utility>

#include "dist/error.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

[[noreturn]] void refuse(const std::string& message, const std::string& hint) {
  throw Error(ErrorKind::usage, message, hint);
}

}  // namespace

void check_bucket_rules(const Recipe& recipe, const std::string& name) {
  const Recipe::Data &data = recipe.data, defaults;
  const std::pair<const char*, bool> limits[] = {
      {"data.min_bucket_reso", data.min_bucket_reso != defaults.min_bucket_reso},
      {"data.max_bucket_reso", data.max_bucket_reso != defaults.max_bucket_reso}};
  if (!data.enable_bucket) {
    const auto needs_buckets = [&](const char* key, bool given) {
      if (given)
        refuse(fmt::format("{}: '{}' has no effect without data.enable_bucket = true", name, key),
               "set it, or remove the key");
    };
    for (const auto& [key, given] : limits) needs_buckets(key, given);
    needs_buckets("data.bucket_reso_steps", data.bucket_reso_steps != defaults.bucket_reso_steps);
    needs_buckets("data.bucket_no_upscale", data.bucket_no_upscale);
    return;
  }
  const int64_t step = data.bucket_reso_steps;
  if (data.resolution < step) {
    refuse(fmt::format("{}: 'data.resolution' = {} is less than 'data.bucket_reso_steps' = {}: no bucket is as small",
                       name, data.resolution, step),
           "raise the one or lower the other");
  }
  if (data.bucket_no_upscale) {
    for (const auto& [key, given] : limits) {
      if (given)
        refuse(fmt::format("{}: '{}' has no effect with data.bucket_no_upscale = true", name, key),
               "remove one of the two keys");
    }
    return;
  }
  for (const auto& [key, value] : {std::pair{"data.min_bucket_reso", data.min_bucket_reso},
                                   std::pair{"data.max_bucket_reso", data.max_bucket_reso}}) {
    if (value % step == 0) continue;
    refuse(fmt::format("{}: '{}' = {} is not a multiple of 'data.bucket_reso_steps' = {}", name, key, value, step),
           fmt::format("{} or {} would do", value / step * step, (value / step + 1) * step));
  }
  if (data.min_bucket_reso > data.resolution || data.resolution > data.max_bucket_reso) {
    refuse(fmt::format(
               "{}: 'data.resolution' = {} is not between 'data.min_bucket_reso' = {} and 'data.max_bucket_reso' = {}",
               name, data.resolution, data.min_bucket_reso, data.max_bucket_reso),
           "the sides of buckets are between the two, and the square of the resolution is one of them");
  }
}

}  // namespace lorashard
