#include "trainer/named_state.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

NamedState part() { return {.tensors = {{"m", at::ones({3})}}, .scalars = {{"d", 0.5}, {"k", int64_t{7}}}}; }

std::string refusal(const NamedState& saved) {
  try {
    require_same_names(saved, part(), "the part");
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    return error.what();
  }
  return "";
}

TEST(NamedState, APartIsFoundUnderItsNameAlone) {
  NamedState whole;
  whole.add("a", part());
  whole.add("ab", {});
  whole.add("b", {.tensors = {{"n", at::zeros({1})}}, .scalars = {}});
  EXPECT_TRUE(whole.tensors.contains("a/m"));
  EXPECT_EQ(whole.part("a").scalars, part().scalars);
  EXPECT_TRUE(at::equal(whole.part("a").tensors.at("m"), at::ones({3})));
  EXPECT_EQ(whole.part("b").tensors.size(), 1u);
  EXPECT_TRUE(whole.has("a") && whole.has("b"));
  EXPECT_FALSE(whole.has("ab") || whole.has("c"));
}

TEST(NamedState, NamesTypesAndShapesMustBeTheSame) {
  EXPECT_EQ(refusal(part()), "");
  NamedState lacks = part(), more = part(), other_type = part(), other_shape = part(), other_number = part();
  lacks.scalars.erase("d");
  more.tensors["n"] = at::ones({3});
  other_type.tensors["m"] = at::ones({3}, at::kByte);
  other_shape.tensors["m"] = at::ones({4});
  other_number.scalars["k"] = 7.0;
  EXPECT_THAT(refusal(lacks), testing::HasSubstr("expected 'd' in the checkpoint"));
  EXPECT_THAT(refusal(more), testing::HasSubstr("found 'n'"));
  EXPECT_THAT(refusal(other_type), testing::HasSubstr("'m': expected Float [3], found Byte [3]"));
  EXPECT_THAT(refusal(other_shape), testing::HasSubstr("'m'"));
  EXPECT_THAT(refusal(other_number), testing::HasSubstr("'k': expected an integer"));
}

}  // namespace
}  // namespace lorashard
