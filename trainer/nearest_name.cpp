#include "trainer/nearest_name.h"

#include <algorithm>

namespace lorashard {
namespace {

std::string_view key_of(std::string_view name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) above[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (a[i - 1] != b[j - 1])});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(above);
    above.swap(row);
  }
  return above[b.size()];
}

std::string nearest_name(std::string_view unknown, const std::vector<std::string>& names) {
  constexpr size_t kLongestName = 100;  // nobody mistypes a name into a longer one; keeps this cheap on hostile input
  if (unknown.size() > kLongestName) return "";
  std::string nearest;
  size_t best = kLongestName;
  for (const std::string& name : names) {
    const size_t wrong_table = edit_distance(key_of(unknown), key_of(name)) + 1;
    const size_t distance = std::min(edit_distance(unknown, name), wrong_table);
    if (distance < best && distance <= std::max<size_t>(2, key_of(name).size() / 3)) {
      best = distance;
      nearest = name;
    }
  }
  return nearest;
}

}  // namespace lorashard
