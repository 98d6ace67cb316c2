// TOML to Recipe: read, look each key up in the field list, set it with its type and check, then the overrides.
// Every fault of a file is reported at once, with file:line:column.
#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <functional>
#include <map>
#include <system_error>
#define TOML_ENABLE_FORMATTERS 0
#include <toml++/toml.h>

#include "dist/error.h"
#include "trainer/nearest_name.h"
#include "trainer/recipe_fields.h"

namespace lorashard {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;
// toml++ 3.3 recurses once for each part of a dotted key and overflows the stack at a million; a key lies on one line.
constexpr size_t kMostDotsInALine = 1000;
constexpr const char* kListHint = "`lorashard help recipe` lists every key";

// Text of a user's file inside a message: short, and without control characters that a terminal would obey.
std::string shown(std::string_view text, size_t most = 80) {
  const bool cut = text.size() > most;
  if (cut) {
    while (most > 0 && (static_cast<unsigned char>(text[most]) & 0xc0) == 0x80) --most;  // not inside a UTF-8 character
    text = text.substr(0, most);
  }
  std::string result;
  for (const char c : text) {
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    result += control ? fmt::format("\\x{:02x}", static_cast<unsigned char>(c)) : std::string(1, c);
  }
  return cut ? result + "..." : result;
}

std::string found_in_words(const toml::node& node) {
  if (const auto* text = node.as_string()) return fmt::format("the string \"{}\"", shown(text->get()));
  if (const auto* number = node.as_integer()) return fmt::format("the integer {}", number->get());
  if (const auto* number = node.as_floating_point()) return fmt::format("the float {}", number->get());
  if (const auto* value = node.as_boolean()) return value->get() ? "true" : "false";
  if (node.is_table()) return "a table";
  if (node.is_array()) return "an array";
  return "a date or time";
}

std::string check_string(const std::string& text) {
  return text.find('\0') == std::string::npos ? "" : "a string with a NUL character";
}

// Sets the member from a TOML value; returns what was found instead where the type is another, "" when set.
struct SetFromToml {
  const toml::node& node;

  std::string operator()(std::string* member) {
    const auto* value = node.as_string();
    if (!value) return found_in_words(node);
    *member = value->get();
    return check_string(*member);
  }
  std::string operator()(int64_t* member) {
    const auto* value = node.as_integer();
    if (!value) return found_in_words(node);
    *member = value->get();
    return "";
  }
  std::string operator()(double* member) {
    if (const auto* value = node.as_integer()) {
      *member = static_cast<double>(value->get());
      return "";
    }
    const auto* value = node.as_floating_point();
    if (!value || !std::isfinite(value->get())) return found_in_words(node);
    *member = value->get();
    return "";
  }
  std::string operator()(bool* member) {
    const auto* value = node.as_boolean();
    if (!value) return found_in_words(node);
    *member = value->get();
    return "";
  }
  template <class T>
  std::string operator()(std::optional<T>* member) {
    return (*this)(&member->emplace());
  }
  template <class T>
  std::string operator()(std::map<std::string, T>* member) {
    const auto* table = node.as_table();
    if (!table) return found_in_words(node);
    member->clear();
    for (const auto& [key, value] : *table) {
      const std::string name(key.str());
      const std::string wrong = SetFromToml{value}(&(*member)[name]);
      if (!wrong.empty()) return fmt::format("{} for '{}'", wrong, shown(name));
      if (const std::string bad = check_string(name); !bad.empty()) return bad + " in it";
    }
    return "";
  }
  std::string operator()(std::vector<std::string>* member) {
    const auto* values = node.as_array();
    if (!values) return found_in_words(node);
    member->clear();
    for (const toml::node& value : *values) {
      const auto* text = value.as_string();
      if (!text) return found_in_words(value) + " in it";
      member->push_back(text->get());
      if (const std::string wrong = check_string(text->get()); !wrong.empty()) return wrong + " in it";
    }
    return "";
  }
  std::string operator()(StringOrArray* member) {
    const auto* text = node.as_string();
    if (!text) return (*this)(&member->texts);
    member->texts = {text->get()};
    return check_string(text->get());
  }
};

// "" when set, else "'lora.rank': expected an integer, at least 1; found the integer 0".
std::string set_field(const RecipeField& field, const toml::node& node) {
  std::string found = std::visit(SetFromToml{node}, field.member);
  if (found.empty() && !field.check.holds(field.member)) {
    found = node.is_array() || node.is_table() ? value_as_toml(field.member) : found_in_words(node);
  }
  if (found.empty()) return "";
  return fmt::format("'{}': expected {}; found {}", field.name(), expected_in_words(field), found);
}

std::string unknown_key(const std::string& name, const std::vector<RecipeField>& fields) {
  std::vector<std::string> names;
  for (const RecipeField& field : fields) names.push_back(field.name());
  const std::string nearest = nearest_name(name, names);
  return fmt::format("unknown key '{}'{}", shown(name),
                     nearest.empty() ? "" : fmt::format("; did you mean '{}'?", nearest));
}

std::string unknown_table(const std::string& table, const std::vector<RecipeField>& fields) {
  std::vector<std::string> names;
  for (const RecipeField& field : fields) {
    if (!field.table.empty() && (names.empty() || names.back() != field.table)) names.push_back(field.table);
  }
  const std::string nearest = nearest_name(table, names);
  return fmt::format("unknown table [{}]{}", shown(table),
                     nearest.empty() ? "" : fmt::format("; did you mean [{}]?", nearest));
}

constexpr size_t kMostFaultsShown = 20;

struct Fault {
  toml::source_position position;
  std::function<std::string()> text;  ///< made only for those that are shown: a hostile file has 100 000
};

class RecipeReader {
 public:
  explicit RecipeReader(Recipe& recipe) : fields_(recipe_fields(recipe)) {
    for (const RecipeField& field : fields_) by_name_.emplace(field.name(), &field);
  }

  void read(const toml::table& root) {
    for (const auto& [key, node] : root) {
      const std::string name(key.str());
      if (const RecipeField* field = find(name)) {
        set(*field, node);
      } else if (!is_table_name(name)) {
        const bool table = node.is_table() || node.is_array_of_tables();
        fault(key.source(), [=, this] { return table ? unknown_table(name, fields_) : unknown_key(name, fields_); });
      } else if (const toml::table* table = node.as_table()) {
        read_table(name, *table);
      } else {
        const std::string found = found_in_words(node);
        fault(key.source(), [=] { return fmt::format("'{}': expected a table [{}]; found {}", name, name, found); });
      }
    }
  }

  /// The faults in the file's order, one a line, "" when there is none.
  std::string faults_of(const std::string& name) {
    std::sort(faults_.begin(), faults_.end(), [](const Fault& a, const Fault& b) {
      return std::pair(a.position.line, a.position.column) < std::pair(b.position.line, b.position.column);
    });
    std::string text;
    for (size_t i = 0; i < std::min(faults_.size(), kMostFaultsShown); ++i) {
      const Fault& fault = faults_[i];
      text += fmt::format("{}{}:{}:{}: {}", text.empty() ? "" : "\n", name, fault.position.line, fault.position.column,
                          fault.text());
    }
    if (faults_.size() > kMostFaultsShown) text += fmt::format("\n... and {} more", faults_.size() - kMostFaultsShown);
    return text;
  }

 private:
  void read_table(const std::string& table, const toml::table& values) {
    for (const auto& [key, node] : values) {
      const std::string name = table + "." + std::string(key.str());
      if (const RecipeField* field = find(name)) {
        set(*field, node);
      } else {
        fault(key.source(), [=, this] { return unknown_key(name, fields_); });
      }
    }
  }
  const RecipeField* find(const std::string& name) const {
    const auto found = by_name_.find(name);
    return found == by_name_.end() ? nullptr : found->second;
  }
  bool is_table_name(const std::string& name) const {
    for (const RecipeField& field : fields_) {
      if (!field.table.empty() && field.table == name) return true;
    }
    return false;
  }
  void set(const RecipeField& field, const toml::node& node) {
    if (const std::string wrong = set_field(field, node); !wrong.empty())
      fault(node.source(), [wrong] { return wrong; });
  }
  void fault(const toml::source_region& where, std::function<std::string()> text) {
    faults_.push_back({where.begin, std::move(text)});
  }

  std::vector<RecipeField> fields_;
  std::map<std::string, const RecipeField*> by_name_;  // a hostile file has 100,000 keys
  std::vector<Fault> faults_;
};

void refuse_hostile_text(const std::string& text, const std::string& name) {
  if (text.size() > kMostBytes) {
    throw Error(ErrorKind::usage,
                fmt::format("{}: expected a recipe of at most {} bytes, found more", name, kMostBytes),
                "is it a recipe?");
  }
  size_t line = 1, dots = 0;
  for (const char c : text) {
    if (c == '\n') {
      ++line;
      dots = 0;
    } else if (c == '.' && ++dots > kMostDotsInALine) {
      throw Error(ErrorKind::usage,
                  fmt::format("{}:{}:1: expected at most {} dots in a line, found more", name, line, kMostDotsInALine),
                  "is it a recipe?");
    }
  }
}

toml::table parse_toml(const std::string& text, const std::string& name) {
  try {
    return toml::parse(text, name);
  } catch (const toml::parse_error& error) {
    const toml::source_position where = error.source().begin;
    throw Error(ErrorKind::usage,
                fmt::format("{}:{}:{}: not TOML: {}", name, where.line, where.column, shown(error.description(), 300)),
                kListHint);
  }
}

// ---- overrides: --set table.key=value

struct Override {
  std::string name, text;  ///< "lora.rank", "8"
};

std::string trimmed(const std::string& text) {
  const size_t first = text.find_first_not_of(" \t"), last = text.find_last_not_of(" \t");
  return first == std::string::npos ? "" : text.substr(first, last - first + 1);
}

Override split_override(const std::string& text) {
  const size_t equals = text.find('=');
  if (equals == std::string::npos || trimmed(text.substr(0, equals)).empty()) {
    throw Error(ErrorKind::usage, fmt::format("--set '{}': expected table.key=value", shown(text)),
                "for example --set lora.rank=8");
  }
  return {trimmed(text.substr(0, equals)), trimmed(text.substr(equals + 1))};
}

// The value as TOML. A bare word, and anything else for a key that holds a string, is taken as the string it looks
// like.
toml::table parse_override_value(const Override& override, bool wants_string) {
  const std::string& text = override.text;
  const bool structured = !text.empty() && std::string_view("\"'[{").find(text.front()) != std::string_view::npos;
  const std::string where = "--set " + shown(override.name);
  refuse_hostile_text(text, where);
  if (structured) {
    toml::table table = parse_toml("value = " + text, where);
    if (table.size() != 1)
      throw Error(ErrorKind::usage, fmt::format("{}: expected one value, found more", where),
                  "give --set once for each key");
    return table;
  }
  if (!wants_string && text.find('\n') == std::string::npos) {
    try {
      return toml::parse("value = " + text);
    } catch (const toml::parse_error&) {
      // not TOML: a bare word, taken as a string below
    }
  }
  return parse_toml("value = " + string_as_toml(text), where);
}

// Setting one of two keys that exclude each other replaces the file's choice between them.
void drop_partner(const std::string& name, Recipe& recipe) {
  Recipe::Train& train = recipe.train;
  if (name == "train.total_batch_size") train.gradient_accumulation_steps.reset();
  if (name == "train.gradient_accumulation_steps") train.total_batch_size.reset();
  if (name == "train.max_train_steps") train.num_train_epochs.reset();
  if (name == "train.num_train_epochs") train.max_train_steps.reset();
  if (name == "validation.validation_steps") recipe.validation.validation_epochs.reset();
  if (name == "validation.validation_epochs") recipe.validation.validation_steps.reset();
}

void apply_overrides(Recipe& recipe, const std::vector<std::string>& texts) {
  const std::vector<RecipeField> fields = recipe_fields(recipe);
  std::vector<Override> overrides;
  for (const std::string& text : texts) overrides.push_back(split_override(text));
  for (const Override& override : overrides) drop_partner(override.name, recipe);
  for (const Override& override : overrides) {
    const auto field =
        std::find_if(fields.begin(), fields.end(), [&](const RecipeField& f) { return f.name() == override.name; });
    if (field == fields.end()) {
      throw Error(ErrorKind::usage,
                  fmt::format("--set {}: {}", shown(override.name), unknown_key(override.name, fields)), kListHint);
    }
    const toml::table value = parse_override_value(override, std::holds_alternative<std::string*>(field->member));
    if (const std::string wrong = set_field(*field, *value.get("value")); !wrong.empty()) {
      throw Error(ErrorKind::usage, fmt::format("--set {}: {}", shown(override.name), wrong),
                  fmt::format("`lorashard help recipe {}` says more", override.name));
    }
  }
}

}  // namespace

Recipe parse_recipe(const std::string& toml_text, const std::string& name, const std::vector<std::string>& overrides) {
  refuse_hostile_text(toml_text, name);
  const toml::table root = parse_toml(toml_text, name);
  Recipe recipe;
  RecipeReader reader(recipe);
  reader.read(root);
  if (const std::string faults = reader.faults_of(name); !faults.empty())
    throw Error(ErrorKind::usage, faults, kListHint);
  apply_overrides(recipe, overrides);
  check_recipe_rules(recipe, name);
  return recipe;
}

Recipe load_recipe(const std::filesystem::path& path, const std::vector<std::string>& overrides) {
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (!std::filesystem::exists(status)) {
    throw Error(ErrorKind::usage, fmt::format("recipe '{}': there is no such file", path.string()),
                "recipes/ has some to start from");
  }
  if (!std::filesystem::is_regular_file(status)) {
    throw Error(ErrorKind::usage, fmt::format("recipe '{}': expected a file, found something else", path.string()),
                "give the path of a TOML file");
  }
  std::ifstream file(path, std::ios::binary);
  if (!file)
    throw Error(ErrorKind::io, fmt::format("recipe '{}': it can't be opened", path.string()), "may you read it?");
  std::string text(kMostBytes + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.bad())
    throw Error(ErrorKind::io, fmt::format("recipe '{}': reading it failed", path.string()), "does the disk work?");
  text.resize(static_cast<size_t>(file.gcount()));
  return parse_recipe(text, path.string(), overrides);
}

}  // namespace lorashard
