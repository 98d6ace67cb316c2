#include "trainer/recipe_checks.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <set>

namespace lorashard {
namespace {

// The number a member holds, whichever numeric type it has; nothing for an absent optional.
std::optional<double> number_of(const FieldMember& member) {
  if (auto* p = std::get_if<int64_t*>(&member)) return static_cast<double>(**p);
  if (auto* p = std::get_if<double*>(&member)) return **p;
  if (auto* p = std::get_if<std::optional<int64_t>*>(&member); p && **p) return static_cast<double>(***p);
  if (auto* p = std::get_if<std::optional<double>*>(&member); p && **p) return ***p;
  return std::nullopt;
}

FieldCheck number_check(const std::string& expected, const std::function<bool(double)>& holds) {
  return {expected, [holds](const FieldMember& member) {
            const std::optional<double> value = number_of(member);
            return !value || holds(*value);
          }};
}

}  // namespace

FieldCheck anything() {
  return {"", [](const FieldMember&) { return true; }};
}

FieldCheck at_least(int64_t low) {
  return number_check(fmt::format("at least {}", low), [low](double v) { return v >= static_cast<double>(low); });
}

FieldCheck between(int64_t low, int64_t high) {
  return number_check(fmt::format("from {} to {}", low, high), [low, high](double v) {
    return v >= static_cast<double>(low) && v <= static_cast<double>(high);
  });
}

FieldCheck above_zero() {
  return number_check("above 0", [](double v) { return v > 0; });
}

FieldCheck seconds_above_zero() {
  return number_check(fmt::format("above 0, at most {}", kMostSeconds),
                      [](double v) { return v > 0 && v <= static_cast<double>(kMostSeconds); });
}

FieldCheck below_one() {
  return number_check("at least 0 and below 1", [](double v) { return v >= 0 && v < 1; });
}

FieldCheck multiple_of(int64_t step, int64_t high) {
  return number_check(fmt::format("a multiple of {} from {} to {}", step, step, high), [step, high](double v) {
    return v >= static_cast<double>(step) && v <= static_cast<double>(high) &&
           std::fmod(v, static_cast<double>(step)) == 0;
  });
}

FieldCheck power_of_two(int64_t high) {
  return number_check(fmt::format("a power of two from 1 to {}", high), [high](double v) {
    int exponent = 0;
    return v >= 1 && v <= static_cast<double>(high) && std::frexp(v, &exponent) == 0.5;
  });
}

FieldCheck one_of(const std::vector<std::string>& words) {
  std::string list;
  for (const std::string& word : words) list += (list.empty() ? "" : ", ") + string_as_toml(word);
  return {(words.size() > 1 ? "one of " : "only ") + list, [words](const FieldMember& member) {
            if (auto* text = std::get_if<std::string*>(&member)) {
              return std::find(words.begin(), words.end(), **text) != words.end();
            }
            const auto& texts = *std::get<std::vector<std::string>*>(member);
            return std::all_of(texts.begin(), texts.end(), [&](const std::string& text) {
              return std::find(words.begin(), words.end(), text) != words.end();
            });
          }};
}

FieldCheck not_empty() {
  return {"not empty", [](const FieldMember& member) { return !std::get<std::string*>(member)->empty(); }};
}

FieldCheck rates_by_pattern() {
  return {"each at least 0, no name empty", [](const FieldMember& member) {
            const auto& rates = *std::get<std::map<std::string, double>*>(member);
            return std::all_of(rates.begin(), rates.end(),
                               [](const auto& item) { return !item.first.empty() && item.second >= 0; });
          }};
}

FieldCheck named_values_above_zero(double high) {
  const auto hold = [high](const auto& values) {
    return std::all_of(values.begin(), values.end(), [high](const auto& entry) {
      const auto value = static_cast<double>(entry.second);
      return !entry.first.empty() && value > 0 && value <= high;
    });
  };
  return {fmt::format("each above 0 and at most {:g}", high), [hold](const FieldMember& member) {
            if (auto* integers = std::get_if<std::map<std::string, int64_t>*>(&member)) return hold(**integers);
            return hold(*std::get<std::map<std::string, double>*>(member));
          }};
}

FieldCheck distinct_names() {
  return {"at least one, none empty, none twice", [](const FieldMember& member) {
            const auto& names = *std::get<std::vector<std::string>*>(member);
            const std::set<std::string> distinct(names.begin(), names.end());
            return !names.empty() && distinct.size() == names.size() && !distinct.contains("");
          }};
}

}  // namespace lorashard
