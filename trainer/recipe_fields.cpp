#include "trainer/recipe_fields.h"

#include "trainer/recipe_checks.h"

namespace lorashard {

std::vector<RecipeField> recipe_fields(Recipe& recipe) {
  Fields fields;
  add_base_fields(fields, recipe);
  add_lora_fields(fields, recipe);
  add_data_fields(fields, recipe);
  add_dreambooth_fields(fields, recipe);
  add_train_fields(fields, recipe);
  add_loss_fields(fields, recipe);
  add_caption_fields(fields, recipe);
  add_optimizer_fields(fields, recipe);
  add_validation_fields(fields, recipe);
  add_run_fields(fields, recipe);
  return fields;
}

std::string expected_in_words(const RecipeField& field) {
  struct {
    std::string operator()(const std::string*) { return "a string"; }
    std::string operator()(const int64_t*) { return "an integer"; }
    std::string operator()(const double*) { return "a number"; }
    std::string operator()(const bool*) { return "true or false"; }
    std::string operator()(const std::optional<int64_t>*) { return "an integer"; }
    std::string operator()(const std::optional<double>*) { return "a number"; }
    std::string operator()(const std::vector<std::string>*) { return "an array of strings"; }
    std::string operator()(const std::map<std::string, int64_t>*) { return "a table of integers"; }
    std::string operator()(const std::map<std::string, double>*) { return "a table of numbers"; }
    std::string operator()(const StringOrArray*) { return "a string or an array of strings"; }
  } type_in_words;
  const std::string type = std::visit(type_in_words, field.member);
  return field.check.expected.empty() ? type : type + ", " + field.check.expected;
}

}  // namespace lorashard
