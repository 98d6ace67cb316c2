#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <tuple>
#include <utility>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/fuzz/fuzz.h"
#include "trainer/recipe.h"

namespace lorashard {
namespace {

using testing::HasSubstr;

/// The error that parsing `text` must give, or "" when it is accepted.
std::string fault_of(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    // What is accepted can be printed, and reads back to the same.
    const std::string printed = print_recipe(parse_recipe(text, "x.toml", overrides));
    EXPECT_EQ(print_recipe(parse_recipe(printed, "printed.toml")), printed) << text;
    return "";
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage) << error.what();
    return error.what();
  }
}

std::vector<std::string> recipes() {
  std::vector<std::string> texts;
  for (const auto& entry : std::filesystem::directory_iterator(LORASHARD_RECIPES))
    if (entry.path().extension() == ".toml") texts.push_back(read_file(entry.path()));
  std::sort(texts.begin(), texts.end());
  return texts;
}

TEST(FuzzToml, MutatedRecipesAreReadOrRefused) {
  const std::string tokens[] = {"[", "]", "[[", "{", "}", "\"", "'''", "\"\"\"", "\\u00", "\\U0010ffff", "=", ".", ",", "\n", "\r", "-", "inf",
                                "nan", "\xff", "\xf0\x9f", std::string(1, '\0'), "1e999", "9223372036854775808", "0x", "1979-05-27", "true", "#",
                                "\xef\xbb\xbf", "[lora]\n", "rank = 4\n", "a.b.c = 1\n", "{a = {b = [1, "};
  const std::vector<std::string> seeds = recipes();
  ASSERT_GE(seeds.size(), 5u);
  const int trials = fuzz_count(5000, 200'000);
  std::mt19937_64 random(2025);
  int accepted = 0, placed = 0;
  for (int i = 0; i < trials; ++i) {
    const std::string fault = fault_of(mutated(seeds[static_cast<size_t>(i) % seeds.size()], tokens, random));
    accepted += fault.empty();
    placed += fault.starts_with("x.toml:");
    EXPECT_TRUE(fault.empty() || fault.starts_with("x.toml")) << fault;
  }
  std::printf("toml: %d mutated recipes: %d accepted, %d refused with a line, %d with a rule between keys\n", trials, accepted, placed,
              trials - accepted - placed);
  EXPECT_GT(accepted, 0) << "changes of comments are harmless";
  EXPECT_GT(placed, trials / 4);
}

TEST(FuzzToml, MutatedOverridesAreReadOrRefused) {
  const std::string tokens[] = {"=", "[", "]", "{", "}", "\"", "'", "\n", ".", "-", "1e999", "\xff", std::string(1, '\0'), "inf", "lora", "[[["};
  const std::string recipe = recipes().front();
  const int trials = fuzz_count(2000, 50'000);
  std::mt19937_64 random(2026);
  int accepted = 0;
  for (int i = 0; i < trials; ++i) {
    const std::string override = i % 2 == 0 ? "lora.rank=8" : "lora.target_modules=[\"to_q\", 'to_k']";
    accepted += fault_of(recipe, {mutated(override, tokens, random)}).empty();
  }
  std::printf("toml: %d mutated overrides: %d accepted\n", trials, accepted);
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, trials);
}

std::string repeated(const std::string& text, int times) {
  std::string all;
  for (int i = 0; i < times; ++i) all += text;
  return all;
}

TEST(FuzzToml, TextMadeToHurtIsRefusedAtItsPlace) {
  std::string keys;
  for (int i = 0; i < 100'000; ++i) keys += fmt::format("k{}=1\n", i);
  struct Case {
    const char* name;
    std::string text;
    const char* said;
  };
  const Case cases[] = {
      {"1 M dotted keys", "a" + repeated(".b", 1'000'000) + " = 1\n", "at most 1048576 bytes"},
      {"1 M keys", repeated(keys, 10), "at most 1048576 bytes"},
      {"1 M '['", "a = " + std::string(1'000'000, '['), "x.toml:1:"},
      {"1 M '[' in a header", std::string(1'000'000, '['), "x.toml:1:"},
      {"1 M '{'", "a = " + std::string(1'000'000, '{'), "x.toml:1:"},
      {"1 M open inline tables", "a = " + repeated("{a=", 330'000), "x.toml:1:"},
      {"500 k dotted keys", "\na" + repeated(".b", 500'000) + " = 1\n", "x.toml:2:1: expected at most 1000 dots"},
      {"500 k dotted keys in a header", "[a" + repeated(".b", 500'000) + "]\n", "x.toml:1:1: expected at most 1000 dots"},
      {"1000 dotted keys", "a" + repeated(".b", 999) + " = 1\n", "x.toml:1:1: unknown table [a]"},
      {"300 k dotted keys in quotes", "a" + repeated(".\"\"", 300'000) + " = 1\n", "x.toml:1:1: expected at most 1000 dots"},
      {"100 k keys", keys, "x.toml:20:1: unknown key 'k19'"},
      {"NUL", std::string("seed = 1\nse\0ed = 1\n", 19), "x.toml:2:"},
      {"two byte order marks", "\xef\xbb\xbf\xef\xbb\xbfseed = 1\n", "x.toml:1:"},
      {"UTF-16", std::string("\xff\xfes\0e\0e\0d\0", 10), "x.toml:1:"},
      {"key twice", "seed = 1\nseed = 2\n", "x.toml:2:"},
      {"table twice", "[lora]\n[lora]\n", "x.toml:2:"},
      {"a key that is a table already", "[lora.rank]\n[lora]\nrank = 1\n", "x.toml:3:"},
      {"above 64 bits", "\nseed = 9223372036854775808\n", "x.toml:2:"},
      {"below 64 bits", "\nseed = -9223372036854775809\n", "x.toml:2:"},
      {"nan", "[optimizer]\nlearning_rate = nan\n", "x.toml:2:17"},
      {"inf", "[optimizer]\nlearning_rate = inf\n", "x.toml:2:17"},
      {"beyond a double", "[optimizer]\nlearning_rate = 1e999\n", "x.toml:2:"},
      {"unknown key", "[lora]\n\nrnak = 1\n", "x.toml:3:1: unknown key 'lora.rnak'"},
      {"1 MB string", "output_dir = \"" + std::string(1'000'000, 'x') + "\nseed = 1\n", "x.toml:1:"},
      {"surrogate", "output_dir = \"\\ud800\"\n", "x.toml:1:"},
      {"beyond Unicode", "output_dir = \"\\U00110000\"\n", "x.toml:1:"},
      {"overlong UTF-8", "output_dir = \"\xc0\xaf\"\n", "x.toml:1:"},
  };
  double slowest = 0;
  const char* slowest_name = "";
  for (const Case& c : cases) {
    const auto start = std::chrono::steady_clock::now();
    EXPECT_THAT(fault_of(c.text), HasSubstr(c.said)) << c.name;
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    if (seconds > slowest) std::tie(slowest, slowest_name) = std::pair(seconds, c.name);
  }
  std::printf("toml: %zu texts made to hurt, all refused, the slowest (%s) after %.2f s\n", std::size(cases), slowest_name, slowest);
}

}  // namespace
}  // namespace lorashard
