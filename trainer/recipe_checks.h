// What the values of recipe keys must satisfy, in words and as a test, and how a table's keys join the one list
// (trainer/recipe_fields.h). Called by the recipe_fields_*.cpp alone.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "trainer/recipe_fields.h"

namespace lorashard {

FieldCheck anything();

// Numbers; an absent optional satisfies all of them.
FieldCheck at_least(int64_t low);
FieldCheck between(int64_t low, int64_t high);
FieldCheck above_zero();
FieldCheck seconds_above_zero();
FieldCheck below_one();
FieldCheck multiple_of(int64_t step, int64_t high);
FieldCheck power_of_two(int64_t high);

// Strings and arrays of strings.
FieldCheck one_of(const std::vector<std::string>& words);
FieldCheck not_empty();
FieldCheck distinct_names();

// Tables of numbers.
FieldCheck rates_by_pattern();
FieldCheck named_values_above_zero(double high);

// Upper bounds keep products (steps * batch, ranks * batch * accumulation) far from overflow; no real run comes near
// them.
constexpr int64_t kMostImages = int64_t{1} << 24;
constexpr int64_t kMostSteps = 1'000'000'000;
constexpr int64_t kMostSeconds = 1'000'000;

using Fields = std::vector<RecipeField>;

inline const FieldIdentity kIdentity = {true, "yes"};  ///< changes the arithmetic: a resume must have the same value
inline const FieldIdentity kFree = {false, "no"};

// One function a group of tables, in the order they are printed.
void add_base_fields(Fields& fields, Recipe& recipe);
void add_lora_fields(Fields& fields, Recipe& recipe);
void add_data_fields(Fields& fields, Recipe& recipe);
void add_dreambooth_fields(Fields& fields, Recipe& recipe);
void add_train_fields(Fields& fields, Recipe& recipe);
void add_loss_fields(Fields& fields, Recipe& recipe);
void add_caption_fields(Fields& fields, Recipe& recipe);
void add_optimizer_fields(Fields& fields, Recipe& recipe);
void add_validation_fields(Fields& fields, Recipe& recipe);
void add_run_fields(Fields& fields, Recipe& recipe);

}  // namespace lorashard
