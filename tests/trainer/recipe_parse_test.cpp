#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <random>

#include "dist/error.h"
#include "tests/support/temp_dir.h"
#include "trainer/recipe.h"

namespace lorashard {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

constexpr const char* kSmall = R"(output_dir = "runs/a"
[model]
pretrained_model_name_or_path = "base"
[data]
train_data_dir = "pack"
[train]
max_train_steps = 10
)";

Recipe parse(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return parse_recipe(text, "small.toml", overrides);
}

// The message of the Error(usage) that parsing must throw.
std::string fault(const std::string& text, const std::vector<std::string>& overrides = {}) {
  try {
    parse(text, overrides);
  } catch (const Error& error) {
    EXPECT_EQ(exit_code(error.kind()), 2) << error.what();
    return error.what();
  }
  ADD_FAILURE() << "accepted:\n" << text.substr(0, 500);
  return "";
}

std::string with(const std::string& lines) { return kSmall + lines; }

TEST(RecipeParse, ReadsEveryType) {
  const Recipe recipe = parse(R"(
output_dir = "runs/\u00e4"
seed = 9223372036854775807
[model]
pretrained_model_name_or_path = 'C:\base'
[lora]
rank = 8
lora_alpha = 16
target_modules = ["to_q", "ff.net.2"]
[data]
train_data_dir = "pack"
random_flip = true
[train]
num_train_epochs = 3
total_batch_size = 8
[optimizer]
learning_rate = 2.5e-05
[report]
report_to = []
)");
  EXPECT_EQ(recipe.output_dir, "runs/\xc3\xa4");
  EXPECT_EQ(recipe.seed, INT64_MAX);
  EXPECT_EQ(recipe.model.pretrained_model_name_or_path, "C:\\base");
  EXPECT_EQ(recipe.lora.rank, 8);
  EXPECT_EQ(recipe.lora.lora_alpha, 16.0);  // an integer where a number is wanted
  EXPECT_EQ(recipe.lora.target_modules, (std::vector<std::string>{"to_q", "ff.net.2"}));
  EXPECT_TRUE(recipe.data.random_flip);
  EXPECT_FALSE(recipe.data.center_crop);
  EXPECT_EQ(recipe.train.num_train_epochs, 3);
  EXPECT_EQ(recipe.train.max_train_steps, std::nullopt);
  EXPECT_EQ(recipe.train.total_batch_size, 8);
  EXPECT_EQ(recipe.optimizer.learning_rate, 2.5e-5);
  EXPECT_TRUE(recipe.report.report_to.empty());
}

TEST(RecipeParse, UnknownKeyNamesPlaceAndNearestKey) {
  EXPECT_THAT(fault(with("[lora]\nrnak = 4\n")),
              StartsWith("small.toml:9:1: unknown key 'lora.rnak'; did you mean 'lora.rank'?"));
  EXPECT_THAT(fault(with("max_train_step = 4\n")), HasSubstr("did you mean 'train.max_train_steps'?"));
  EXPECT_THAT(fault(with("learning_rate = 4\n")),
              HasSubstr("'train.learning_rate'; did you mean 'optimizer.learning_rate'?"));
  EXPECT_THAT(fault("rank = 4\n" + std::string(kSmall)), HasSubstr("unknown key 'rank'; did you mean 'lora.rank'?"));
  EXPECT_THAT(fault(with("[optimiser]\nlearning_rate = 1\n")),
              HasSubstr("unknown table [optimiser]; did you mean [optimizer]?"));
  EXPECT_THAT(fault(with("[[lora]]\nrank = 1\n")), HasSubstr("'lora': expected a table [lora]; found an array"));
  EXPECT_THAT(fault(with("something_else_entirely = 1\n")),
              AllOf(HasSubstr("unknown key"), Not(HasSubstr("did you mean"))));
}

TEST(RecipeParse, KeysOfTheOtherTaskAreRefused) {
  EXPECT_THAT(fault(with("[dreambooth]\ninstance_prompt = 'a dog'\n")),
              HasSubstr("'dreambooth.instance_prompt' has no effect without task = \"dreambooth\""));
}

TEST(RecipeParse, AllFaultsOfAFileComeAtOnceInItsOrder) {
  const std::string text = fault(with("[optimizer]\nlearning_rte = 1\n[lora]\nrank = 0\n"));
  EXPECT_LT(text.find("small.toml:9:1: unknown key 'optimizer.learning_rte'"),
            text.find("small.toml:11:8: 'lora.rank'"))
      << text;
  EXPECT_NE(text.find("small.toml:11:8: 'lora.rank'"), std::string::npos) << text;
}

TEST(RecipeParse, TypeFaultsNameExpectedAndFound) {
  EXPECT_THAT(fault(with("[lora]\nrank = 4.0\n")),
              HasSubstr("'lora.rank': expected an integer, from 1 to 65536; found the float 4"));
  EXPECT_THAT(fault(with("[lora]\nrank = '4'\n")), HasSubstr("found the string \"4\""));
  EXPECT_THAT(fault(with("[lora]\nrank = 0\n")), HasSubstr("found the integer 0"));
  EXPECT_THAT(fault(with("[lora]\nlora_alpha = true\n")), HasSubstr("expected a number, above 0; found true"));
  EXPECT_THAT(fault(with("[lora]\ntarget_modules = 'to_q'\n")), HasSubstr("expected an array of strings"));
  EXPECT_THAT(fault(with("[lora]\ntarget_modules = ['to_q', 3]\n")), HasSubstr("found the integer 3 in it"));
  EXPECT_THAT(fault(with("[lora]\ntarget_modules = ['to_q', 'to_q']\n")), HasSubstr("found [\"to_q\", \"to_q\"]"));
  EXPECT_THAT(fault(with("[lora]\ntarget_modules = []\n")), HasSubstr("found []"));
  EXPECT_THAT(fault(with("[lora]\ninit = ['gaussian']\n")),
              HasSubstr("expected a string, one of \"gaussian\", \"kaiming\"; found an array"));
  EXPECT_THAT(fault(with("deterministic = 1\n")), HasSubstr("expected true or false; found the integer 1"));
  EXPECT_THAT(fault(with("mixed_precision = 'fp8'\n")),
              HasSubstr("one of \"no\", \"fp16\", \"bf16\"; found the string \"fp8\""));
  EXPECT_THAT(fault(with("[output]\nformats = ['diffusers', 'a1111']\n")),
              HasSubstr("found [\"diffusers\", \"a1111\"]"));
  EXPECT_THAT(fault(with("[report]\nlogging_dir = 2024-01-01\n")), HasSubstr("found a date or time"));
  EXPECT_THAT(fault(with("[report]\nlogging_dir = ''\n")), HasSubstr("not empty"));
  EXPECT_THAT(fault(with("[optimizer]\nadam_beta1 = 1\n")), HasSubstr("at least 0 and below 1"));
  EXPECT_THAT(fault("lora = 3\n" + std::string(kSmall)),
              HasSubstr("'lora': expected a table [lora]; found the integer 3"));
  EXPECT_THAT(fault("task = 'inpainting'\n" + std::string(kSmall)), HasSubstr("one of \"text_to_image\", \"dreambooth\""));
}

TEST(RecipeParse, ResolutionIsAMultipleOf8) {
  EXPECT_EQ(parse(with(""), {"data.resolution=72"}).data.resolution, 72);
  EXPECT_THAT(fault(with(""), {"data.resolution=70"}), HasSubstr("a multiple of 8"));
  EXPECT_THAT(fault(with(""), {"data.resolution=0"}), HasSubstr("a multiple of 8"));
}

TEST(RecipeParse, NumbersThatAreNoneAreRefused) {
  for (const char* value : {"nan", "inf", "-inf", "+nan"}) {
    EXPECT_THAT(fault(with(std::string("[optimizer]\nlearning_rate = ") + value + "\n")), HasSubstr("found the float"))
        << value;
    EXPECT_THAT(fault(kSmall, {std::string("optimizer.learning_rate=") + value}), HasSubstr("found the float"))
        << value;
  }
  EXPECT_THAT(fault(with("[lora]\nrank = 9223372036854775808\n")), HasSubstr("small.toml:9:"));
  EXPECT_THAT(fault("seed = -1\n" + std::string(kSmall)), HasSubstr("at least 0"));
}

TEST(RecipeParse, RequiredKeysAreNamedWhenMissing) {
  EXPECT_THAT(fault("output_dir = 'a'\n"), HasSubstr("small.toml: 'model.pretrained_model_name_or_path' is missing"));
  EXPECT_THAT(fault("[model]\npretrained_model_name_or_path='b'\n[data]\ntrain_data_dir='p'\n"),
              HasSubstr("'output_dir' is missing"));
  EXPECT_THAT(fault("output_dir='a'\n[model]\npretrained_model_name_or_path='b'\n"),
              HasSubstr("'data.train_data_dir' is missing"));
  EXPECT_THAT(fault(""), HasSubstr("is missing"));
}

TEST(RecipeParse, KeysThatExcludeEachOtherAreRefused) {
  EXPECT_THAT(fault(with("total_batch_size = 8\ngradient_accumulation_steps = 2\n")), HasSubstr("exclude each other"));
  EXPECT_THAT(fault(with("num_train_epochs = 8\n")), HasSubstr("exclude each other"));
  EXPECT_THAT(fault(kSmall, {"noise.multires_noise_iterations=6", "train.noise_offset=0.1"}), HasSubstr("exclude each other"));
  for (const char* key : {"lora.rank_dropout=0.1", "lora.module_dropout=0.1", "lora.scale_weight_norms=1.0"})
    EXPECT_THAT(fault(kSmall, {"lora.use_dora=true", key}), HasSubstr("'lora.use_dora' excludes"));
  EXPECT_THAT(fault("output_dir='a'\n[model]\npretrained_model_name_or_path='b'\n[data]\ntrain_data_dir='p'\n"),
              HasSubstr("neither 'train.max_train_steps' nor 'train.num_train_epochs'"));
  EXPECT_THAT(fault(with("train_batch_size = 4\ntotal_batch_size = 6\n")),
              AllOf(HasSubstr("6 is not a multiple of 'train.train_batch_size' 4"), HasSubstr("4 or 8 would do")));
}

TEST(RecipeParse, OverridesReplaceValues) {
  const Recipe recipe =
      parse(with("[lora]\nrank = 4\n"),
            {"lora.rank=8", " output_dir = runs/b ", "train.mixed_precision=bf16", "seed=7", "data.center_crop=true",
             "lora.target_modules=[\"to_q\"]", "optimizer.learning_rate=1", "report.logging_dir=2024"});
  EXPECT_EQ(recipe.lora.rank, 8);
  EXPECT_EQ(recipe.output_dir, "runs/b");
  EXPECT_EQ(recipe.train.mixed_precision, "bf16");
  EXPECT_EQ(recipe.seed, 7);
  EXPECT_TRUE(recipe.data.center_crop);
  EXPECT_EQ(recipe.lora.target_modules, (std::vector<std::string>{"to_q"}));
  EXPECT_EQ(recipe.optimizer.learning_rate, 1.0);
  EXPECT_EQ(recipe.report.logging_dir, "2024");
  EXPECT_EQ(parse(kSmall, {"output_dir=\"a=b\""}).output_dir, "a=b");
  EXPECT_EQ(parse(kSmall, {"output_dir=a=b"}).output_dir, "a=b");
  EXPECT_EQ(parse(kSmall, {"seed=1", "seed=2"}).seed, 2);
}

TEST(RecipeParse, OverrideOfOneOfTwoExclusiveKeysDropsTheOther) {
  const Recipe recipe =
      parse(with("total_batch_size = 8\n"), {"train.gradient_accumulation_steps=2", "train.num_train_epochs=3"});
  EXPECT_EQ(recipe.train.total_batch_size, std::nullopt);
  EXPECT_EQ(recipe.train.gradient_accumulation_steps, 2);
  EXPECT_EQ(recipe.train.max_train_steps, std::nullopt);
  EXPECT_EQ(recipe.train.num_train_epochs, 3);
  EXPECT_THAT(fault(kSmall, {"train.total_batch_size=4", "train.gradient_accumulation_steps=2"}),
              HasSubstr("exclude each other"));
}

TEST(RecipeParse, WrongOverridesAreNamed) {
  EXPECT_THAT(fault(kSmall, {"lora.rnak=8"}),
              HasSubstr("--set lora.rnak: unknown key 'lora.rnak'; did you mean 'lora.rank'?"));
  EXPECT_THAT(fault(kSmall, {"lora.rank"}), HasSubstr("expected table.key=value"));
  EXPECT_THAT(fault(kSmall, {"=8"}), HasSubstr("expected table.key=value"));
  EXPECT_THAT(fault(kSmall, {"lora.rank="}), HasSubstr("found the string \"\""));
  EXPECT_THAT(fault(kSmall, {"lora.rank=eight"}), HasSubstr("found the string \"eight\""));
  EXPECT_THAT(fault(kSmall, {"lora.target_modules=[to_q]"}), HasSubstr("--set lora.target_modules:1:"));
  EXPECT_THAT(fault(kSmall, {"lora.rank=8\nseed = 3"}), HasSubstr("found the string"));
  EXPECT_THAT(fault(kSmall, {"lora.target_modules=['a']\nseed = 3"}), HasSubstr("expected one value"));
  EXPECT_THAT(fault(kSmall, {"output_dir=\xff\xfe"}), HasSubstr("not TOML"));
}

TEST(RecipeParse, ByteOrderMarkIsAccepted) {
  EXPECT_EQ(parse("\xef\xbb\xbf" + std::string(kSmall)).output_dir, "runs/a");
}

TEST(RecipeParse, NulCharactersAreRefused) {
  EXPECT_THAT(fault(with(std::string("x\0y = 1\n", 8))), HasSubstr("small.toml:8:"));
  EXPECT_THAT(fault(with("[report]\nlogging_dir = \"a\\u0000b\"\n")), HasSubstr("NUL"));
}

TEST(RecipeParse, DuplicateKeysAreRefusedWithTheirPlace) {
  EXPECT_THAT(fault(with("[lora]\nrank = 1\nrank = 2\n")), HasSubstr("small.toml:10:"));
  EXPECT_THAT(fault(with("[train]\ntrain_batch_size = 2\n")), HasSubstr("small.toml:8:"));
}

TEST(RecipeParse, HostileTextIsRefused) {
  std::string dots = "a";
  for (int i = 0; i < 400'000; ++i) dots += ".b";
  EXPECT_THAT(fault(dots + " = 1\n"), HasSubstr("small.toml:1:1: expected at most 1000 dots"));
  EXPECT_THAT(fault("\n[" + dots + "]\n"), HasSubstr("small.toml:2:1: expected at most 1000 dots"));
  EXPECT_THAT(fault(kSmall, {"lora.target_modules=[{" + dots + " = 1}]"}), HasSubstr("at most 1000 dots"));
  EXPECT_THAT(fault("a = " + std::string(1'000'000, '[')), HasSubstr("not TOML"));
  EXPECT_THAT(fault(std::string(2'000'000, '#')), HasSubstr("at most 1048576 bytes"));
  std::string many;
  for (int i = 0; i < 100'000; ++i) many += "k" + std::to_string(i) + "=1\n";
  EXPECT_THAT(fault(many), AllOf(HasSubstr("small.toml:20:1: unknown key 'k19'"), HasSubstr("and 99980 more")));
  EXPECT_THAT(fault("\"\\u001b[31m\" = 1\n"), HasSubstr("unknown key '\\x1b[31m'"));
}

TEST(RecipeParse, AnyDamageGivesARecipeOrAUsageError) {
  const int count = std::getenv("LORASHARD_LONG_TESTS") ? 200'000 : 3'000;
  std::printf("%d damaged recipes\n", count);
  const std::string whole =
      with("[lora]\nrank = 4\ntarget_modules = [\"to_q\", 'to_k']\n[optimizer]\nlearning_rate = 1e-4 # x\n");
  const std::string pieces[] = {"[",
                                "]",
                                "{",
                                "}",
                                "\"",
                                "'''",
                                "\"\"\"",
                                "\\u00",
                                "=",
                                ".",
                                "\n",
                                "\r",
                                "-",
                                "inf",
                                "\xff",
                                "\xf0\x9f",
                                std::string(1, '\0'),
                                "1e999"};
  std::mt19937 random(3);
  int accepted = 0;
  for (int i = 0; i < count; ++i) {
    std::string text = whole;
    for (unsigned edits = 1 + random() % 3; edits > 0; --edits) {
      const size_t at = random() % text.size();
      switch (random() % 4) {
        case 0:
          text[at] = static_cast<char>(random());
          break;
        case 1:
          text.erase(at, random() % 8);
          break;
        case 2:
          text.insert(at, pieces[random() % std::size(pieces)]);
          break;
        default:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
      }
    }
    try {
      const std::string printed = print_recipe(parse(text));
      ASSERT_EQ(print_recipe(parse(printed)), printed) << text;
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::usage) << text << error.what();
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, count);
}

TEST(RecipeParse, MissingFileIsWrongUse) {
  const TempDir dir;
  for (const auto& path : {dir / "no.toml", dir.path()}) {
    try {
      load_recipe(path);
      ADD_FAILURE() << "loaded " << path;
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::usage);
      EXPECT_THAT(error.what(), HasSubstr(path.string()));
    }
  }
}

TEST(RecipeParse, FileIsReadWithItsName) {
  const TempDir dir;
  const auto path = dir / "a.toml";
  std::ofstream(path) << kSmall;
  EXPECT_EQ(load_recipe(path, {"seed=5"}).seed, 5);
  std::ofstream(path) << kSmall << "[lora]\nrank = x\n";
  EXPECT_THROW(
      {
        try {
          load_recipe(path);
        } catch (const Error& error) {
          EXPECT_THAT(error.what(), StartsWith(path.string() + ":9:"));
          throw;
        }
      },
      Error);
}

}  // namespace
}  // namespace lorashard
