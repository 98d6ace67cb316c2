// The ONE list of a recipe's keys. Parsing, checking, printing, help, docs/recipe_reference.md and the check of a
// resume all follow it: a new key is a member of Recipe and a line of the table's recipe_fields_*.cpp, nothing else.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "trainer/recipe.h"

namespace lorashard {

/// The member a key is kept in; its type is the key's type.
using FieldMember = std::variant<std::string*, int64_t*, double*, bool*, std::optional<int64_t>*,
                                 std::optional<double>*, std::vector<std::string>*, StringOrArray*,
                                 std::map<std::string, int64_t>*, std::map<std::string, double>*>;

/// What a value must satisfy beyond its type.
struct FieldCheck {
  std::string expected;                           ///< "at least 1"; empty: anything
  std::function<bool(const FieldMember&)> holds;  ///< of the member after it was set
};

/// Whether a key changes the arithmetic of a run (a resume must then have the same value).
struct FieldIdentity {
  bool holds;            ///< in the recipe that the list was made for
  std::string in_words;  ///< for the reference: "yes", "no", or when
};

struct RecipeField {
  std::string table;  ///< "" for the keys above all tables
  std::string key;
  FieldMember member;
  FieldCheck check;
  FieldIdentity identity;
  std::string doc;

  std::string name() const { return table.empty() ? key : table + "." + key; }
};

/// The list, its members and conditions being those of `recipe`, which must outlive it.
std::vector<RecipeField> recipe_fields(Recipe& recipe);

/// "an integer, at least 1": type and check in words.
std::string expected_in_words(const RecipeField& field);

/// The value as TOML; "" for an optional key that is absent. Doubles with the fewest digits that read back to the same
/// bits.
std::string value_as_toml(const FieldMember& member);
/// `text` as a TOML basic string, quotes included; control characters become escapes.
std::string string_as_toml(const std::string& text);

/// The rules between keys (what is required, what excludes what). Throws Error(usage); `name` is the recipe's.
void check_recipe_rules(const Recipe& recipe, const std::string& name);
/// Those of [dreambooth] and task; called by check_recipe_rules().
void check_dreambooth_rules(const Recipe& recipe, const std::string& name);
/// Those of aspect-ratio buckets, in [data].
void check_bucket_rules(const Recipe& recipe, const std::string& name);
/// Those of [optimizer], [ema] and [lr_scheduler]: refuses a key that would have no effect with the optimizer chosen.
void check_optimizer_rules(const Recipe& recipe, const std::string& name);

}  // namespace lorashard
