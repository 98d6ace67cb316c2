// "did you mean": the known name nearest to one that isn't known.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace lorashard {

/// Edits from `a` to `b`: insert, delete, replace, or swap two neighbours (optimal string alignment).
size_t edit_distance(std::string_view a, std::string_view b);

/// The nearest of `names` when it is near enough to be meant (a third of its length, at least 2), else "". For
/// "table.key" names, the right key in a wrong table or in none counts as near.
std::string nearest_name(std::string_view unknown, const std::vector<std::string>& names);

}  // namespace lorashard
