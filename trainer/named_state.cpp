#include "trainer/named_state.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>
#include <fmt/ranges.h>

#include "dist/error.h"

namespace lorashard {
namespace {

std::string prefix_of(const std::string& part) { return part + "/"; }

template <class Map>
void add_all(Map& whole, const std::string& prefix, const Map& part) {
  for (const auto& [name, value] : part) whole.insert_or_assign(prefix + name, value);
}

template <class Map>
Map all_below(const Map& whole, const std::string& prefix) {
  Map part;
  for (auto it = whole.lower_bound(prefix); it != whole.end() && it->first.starts_with(prefix); ++it)
    part.emplace(it->first.substr(prefix.size()), it->second);
  return part;
}

Error unlike(const std::string& what, const std::string& found) {
  return Error(ErrorKind::bad_data, fmt::format("restoring {}: {}", what, found),
               "the checkpoint was written by another version or for other settings");
}

template <class Map>
void require_same_keys(const Map& saved, const Map& expected, const std::string& what) {
  for (const auto& [name, value] : expected)
    if (!saved.contains(name)) throw unlike(what, fmt::format("expected '{}' in the checkpoint, found none", name));
  for (const auto& [name, value] : saved)
    if (!expected.contains(name)) throw unlike(what, fmt::format("found '{}' in the checkpoint, expected none", name));
}

std::string in_words(const at::Tensor& tensor) {
  return fmt::format("{} [{}]", c10::toString(tensor.scalar_type()), fmt::join(tensor.sizes(), ", "));
}

}  // namespace

void NamedState::add(const std::string& part, const NamedState& other) {
  add_all(tensors, prefix_of(part), other.tensors);
  add_all(scalars, prefix_of(part), other.scalars);
}

NamedState NamedState::part(const std::string& part) const {
  return {all_below(tensors, prefix_of(part)), all_below(scalars, prefix_of(part))};
}

bool NamedState::has(const std::string& part) const {
  const NamedState found = this->part(part);
  return !found.tensors.empty() || !found.scalars.empty();
}

void require_same_names(const NamedState& saved, const NamedState& expected, const std::string& what) {
  require_same_keys(saved.tensors, expected.tensors, what);
  require_same_keys(saved.scalars, expected.scalars, what);
  for (const auto& [name, tensor] : expected.tensors) {
    const at::Tensor& found = saved.tensors.at(name);
    if (found.scalar_type() == tensor.scalar_type() && found.sizes() == tensor.sizes()) continue;
    throw unlike(what, fmt::format("'{}': expected {}, found {}", name, in_words(tensor), in_words(found)));
  }
  for (const auto& [name, value] : expected.scalars) {
    if (saved.scalars.at(name).index() == value.index()) continue;
    throw unlike(what, fmt::format("'{}': expected {}", name, value.index() == 0 ? "an integer" : "a double"));
  }
}

void copy_tensors(const StateDict& from, StateDict& into) {
  const at::NoGradGuard no_grad;
  LORASHARD_CHECK(from.size() == into.size(), "{} tensors for {}", from.size(), into.size());
  for (const auto& [name, tensor] : from) {
    const auto it = into.find(name);
    LORASHARD_CHECK(it != into.end(), "no tensor '{}' to copy to", name);
    it->second.copy_(tensor);
  }
}

}  // namespace lorashard
