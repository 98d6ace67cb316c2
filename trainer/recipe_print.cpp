// Recipe to TOML: the start-up print, recipe.toml of a run directory, the recipe inside a checkpoint.
#include <fmt/core.h>

#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

// fmt gives the fewest digits that read back to the same double; TOML wants a point or an exponent in a float.
std::string double_as_toml(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

struct ToToml {
  std::string operator()(const std::string* value) { return string_as_toml(*value); }
  std::string operator()(const int64_t* value) { return fmt::format("{}", *value); }
  std::string operator()(const double* value) { return double_as_toml(*value); }
  std::string operator()(const bool* value) { return *value ? "true" : "false"; }
  std::string operator()(const std::optional<int64_t>* value) { return *value ? fmt::format("{}", **value) : ""; }
  std::string operator()(const std::optional<double>* value) { return *value ? double_as_toml(**value) : ""; }
  template <class T>
  std::string operator()(const std::map<std::string, T>* values) {
    std::string text;
    for (const auto& [name, value] : *values)
      text += (text.empty() ? " " : ", ") + string_as_toml(name) + " = " + (*this)(&value);
    return text.empty() ? "{}" : "{" + text + " }";
  }
  std::string operator()(const std::vector<std::string>* values) {
    std::string text;
    for (const std::string& value : *values) text += (text.empty() ? "" : ", ") + string_as_toml(value);
    return "[" + text + "]";
  }
  std::string operator()(const StringOrArray* values) { return (*this)(&values->texts); }
};

}  // namespace

std::string string_as_toml(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      quoted += fmt::format("\\u{:04x}", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string value_as_toml(const FieldMember& member) { return std::visit(ToToml{}, member); }

std::string print_recipe(const Recipe& recipe) {
  Recipe copy = recipe;
  std::string text, table;
  for (const RecipeField& field : recipe_fields(copy)) {
    const std::string value = value_as_toml(field.member);
    if (value.empty()) continue;
    if (field.table != table) {
      table = field.table;
      text += fmt::format("\n[{}]\n", table);
    }
    text += fmt::format("{} = {}\n", field.key, value);
  }
  return text;
}

std::vector<std::pair<std::string, std::string>> identity_values(const Recipe& recipe) {
  Recipe copy = recipe;
  std::vector<std::pair<std::string, std::string>> values;
  for (const RecipeField& field : recipe_fields(copy)) {
    if (!field.identity.holds) continue;
    const std::string value = value_as_toml(field.member);
    if (!value.empty()) values.emplace_back(field.name(), value);
  }
  return values;
}

}  // namespace lorashard
