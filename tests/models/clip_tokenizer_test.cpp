#include "models/clip_tokenizer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "dist/error.h"
#include "models/byte_pair_encoding.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using Json = nlohmann::json;

constexpr int64_t kStart = 1000, kEnd = 1001;

/// The symbol of a byte as GPT-2 prints it: for ASCII that prints, the byte itself.
std::vector<std::string> byte_symbols() {
  std::vector<std::string> symbols;
  int next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool prints = (byte > 0x20 && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD);
    const int c = prints ? byte : next++;
    symbols.push_back(c < 0x80 ? std::string(1, char(c)) : std::string{char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))});
  }
  return symbols;
}

/// Ids: 0..255 the bytes, 256..511 the bytes at a word's end, then one for each merge.
Vocabulary small_vocabulary(const Merges& merges) {
  Vocabulary vocab;
  const auto symbols = byte_symbols();
  for (int byte = 0; byte < 256; ++byte) {
    vocab[symbols[byte]] = byte;
    vocab[symbols[byte] + "</w>"] = 256 + byte;
  }
  int64_t id = 512;
  for (const auto& [left, right] : merges) {
    if (vocab.emplace(left + right, id).second) ++id;
  }
  return vocab;
}

const Merges kMerges = {{"a", "b"}, {"c", "d</w>"}, {"ab", "cd</w>"}};  // ab 512, cd</w> 513, abcd</w> 514

void write(const std::filesystem::path& file, const std::string& text) {
  std::ofstream(file, std::ios::binary) << text;
}

void write_tokenizer(const std::filesystem::path& folder) {
  Vocabulary vocab = small_vocabulary(kMerges);
  vocab["<|startoftext|>"] = kStart;
  vocab["<|endoftext|>"] = kEnd;
  write(folder / "vocab.json", Json(vocab).dump());
  write(folder / "merges.txt", "#version: 0.2\na b\nc d</w>\nab cd</w>\n");
}

Error error_of(const std::filesystem::path& folder) {
  try {
    const CLIPTokenizer tokenizer(folder);
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorKind::internal, "");
}

TEST(CLIPTokenizer, WordsAreMergedByRankWithTheirEnd) {
  TempDir folder;
  write_tokenizer(folder.path());
  const CLIPTokenizer tokenizer(folder.path());
  EXPECT_THAT(tokenizer.encode("ABCD abc, ab"),
              ElementsAre(kStart, 514, 512, 256 + 'c', 256 + ',', 'a', 256 + 'b', kEnd));
  EXPECT_THAT(tokenizer.encode(""), ElementsAre(kStart, kEnd));
  EXPECT_THAT(tokenizer.encode("x<|endoftext|>y"), ElementsAre(kStart, 256 + 'x', kEnd, 256 + 'y', kEnd));
}

TEST(CLIPTokenizer, TextsArePaddedAndTruncatedToTheModelsLength) {
  TempDir folder;
  write_tokenizer(folder.path());
  write(folder / "tokenizer_config.json", R"({"model_max_length": 6, "pad_token": "!"})");
  const CLIPTokenizer tokenizer(folder.path());
  EXPECT_EQ(tokenizer.model_max_length(), 6);
  const at::Tensor ids = tokenizer({"z", "1 2 3 4 5 6 7"});
  const at::Tensor expected =
      at::tensor({kStart, int64_t{256 + 'z'}, kEnd, int64_t{'!'}, int64_t{'!'}, int64_t{'!'}, kStart,
                  int64_t{256 + '1'}, int64_t{256 + '2'}, int64_t{256 + '3'}, int64_t{256 + '4'}, kEnd},
                 at::kLong);
  EXPECT_TRUE(at::equal(ids.flatten(), expected)) << ids;
}

TEST(CLIPTokenizer, TokenizerJsonServesAloneWithEitherFormOfMerges) {
  for (const Json& merges : {Json(kMerges), Json({"a b", "c d</w>", "ab cd</w>"})}) {
    TempDir folder;
    Vocabulary vocab = small_vocabulary(kMerges);
    vocab["<|startoftext|>"] = kStart;
    vocab["<|endoftext|>"] = kEnd;
    write(folder / "tokenizer.json",
          Json{{"model", {{"type", "BPE"}, {"end_of_word_suffix", "</w>"}, {"vocab", vocab}, {"merges", merges}}}}
              .dump());
    EXPECT_THAT(CLIPTokenizer(folder.path()).encode("abcd"), ElementsAre(kStart, 514, kEnd));
  }
}

TEST(CLIPTokenizer, NoLimitInTheConfigMeansTheLengthOfClip) {
  TempDir folder;
  write_tokenizer(folder.path());
  EXPECT_EQ(CLIPTokenizer(folder.path()).model_max_length(), 77);
  write(folder / "tokenizer_config.json", R"({"model_max_length": 1000000000000000019884624838656})");
  EXPECT_EQ(CLIPTokenizer(folder.path()).model_max_length(), 77);
}

TEST(CLIPTokenizer, AnyBytesGiveIdsOfTheVocabulary) {
  TempDir folder;
  write_tokenizer(folder.path());
  write(folder / "tokenizer_config.json", R"({"model_max_length": 100000})");
  const CLIPTokenizer tokenizer(folder.path());
  std::mt19937_64 random(1337);
  for (int i = 0; i < 3000; ++i) {
    std::string text(random() % 60, '\0');
    for (char& c : text) c = char(random());
    const auto ids = tokenizer.encode(text);
    ASSERT_EQ(ids.front(), kStart);
    ASSERT_EQ(ids.back(), kEnd);
    ASSERT_TRUE(std::all_of(ids.begin(), ids.end(), [](int64_t id) { return id >= 0 && id <= kEnd; }));
  }
}

TEST(CLIPTokenizer, AMegabyteInOneWordIsEncodedWhole) {
  TempDir folder;
  write_tokenizer(folder.path());
  write(folder / "tokenizer_config.json", R"({"model_max_length": 1000000})");
  const CLIPTokenizer tokenizer(folder.path());
  std::string word;
  for (int i = 0; i < 262144; ++i) word += "abcd";
  const auto ids = tokenizer.encode(word);  // ab c d ... ab cd</w>
  ASSERT_EQ(ids.size(), 3u * 262143 + 1 + 2);
  EXPECT_THAT(std::vector<int64_t>(ids.end() - 4, ids.end()), ElementsAre('c', 'd', 514, kEnd));
}

TEST(CLIPTokenizer, ARunOfMarksOutOfOrderIsSortedInNLogN) {
  TempDir folder;
  write_tokenizer(folder.path());
  const CLIPTokenizer tokenizer(folder.path());
  std::string above, overlay;  // U+0301 (class 230) before U+0334 (class 1): half a million to move
  for (int i = 0; i < 500000; ++i) {
    above += "\u0301";
    overlay += "\u0334";
  }
  const auto ids = tokenizer.encode("q" + above + overlay);
  EXPECT_THAT(std::vector<int64_t>(ids.begin(), ids.begin() + 4), ElementsAre(kStart, 256 + 'q', 0xCC, 0xB4));
}

TEST(CLIPTokenizer, ThreadsShareOneTokenizer) {
  TempDir folder;
  write_tokenizer(folder.path());
  const CLIPTokenizer tokenizer(folder.path());
  std::vector<std::string> texts;
  std::mt19937_64 random(7);
  for (int i = 0; i < 2000; ++i)
    texts.push_back(std::string(1 + random() % 5, char('a' + random() % 4)) + std::to_string(random() % 50));
  std::vector<std::vector<int64_t>> expected;
  const CLIPTokenizer alone(folder.path());
  for (const std::string& text : texts) expected.push_back(alone.encode(text));
  std::vector<int> wrong(4, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = 0; i < texts.size(); ++i) wrong[t] += tokenizer.encode(texts[i]) != expected[i];
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, ElementsAre(0, 0, 0, 0));
}

TEST(CLIPTokenizer, AFolderWithoutAVocabularyIsWrongUse) {
  TempDir folder;
  const Error error = error_of(folder.path());
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  EXPECT_THAT(error.message(), HasSubstr(folder.path().string()));
}

TEST(CLIPTokenizer, ABrokenFileIsNamed) {
  struct Case {
    const char *file, *content, *message;
  };
  const std::string deep(100000, '[');
  for (const Case& c :
       {Case{"vocab.json", "{\"a\": 1", "vocab.json"},
        Case{"vocab.json", "[]", "expected a JSON object, found array"},
        Case{"vocab.json", "{}", "expected a vocabulary"},
        Case{"vocab.json", R"({"a": "b"})", "'a': expected an id"},
        Case{"vocab.json", R"({"a": -1})", "found -1"},
        Case{"vocab.json", R"({"a": 1.5})", "found 1.5"},
        Case{"vocab.json", R"({"a": 18446744073709551615})", "expected an id"},
        Case{"vocab.json", R"({"<|startoftext|>": 1, "<|endoftext|>": 2, "a": 3})", "the left of a merge, 'b'"},
        Case{"vocab.json", R"({"a": 1})", "'<|startoftext|>' is not in the vocabulary"},
        Case{"merges.txt", "a b\nabc\n", "one space between, found 'abc'"},
        Case{"merges.txt", "a b c\n", "found 'a b c'"},
        Case{"merges.txt", "a zz\n", "'zz' is not in the vocabulary"},
        Case{"merges.txt", "a c\n", "the result of a merge, 'ac'"},
        Case{"tokenizer_config.json", "nonsense", "tokenizer_config.json"},
        Case{"tokenizer_config.json", R"({"pad_token": 3})", "expected a token as a string"},
        Case{"tokenizer_config.json", R"({"pad_token": "nowhere"})", "'nowhere' is not in the vocabulary"},
        Case{"tokenizer_config.json", R"({"model_max_length": 1})", "2 or more"},
        Case{"tokenizer_config.json", R"({"added_tokens_decoder": {"x": "y"}})", "found 'x'"},
        Case{"special_tokens_map.json", "[1]", "special_tokens_map.json"},
        Case{"added_tokens.json", R"({"<x>": null})", "added_tokens.json"},
        Case{"tokenizer.json", "{}", "expected 'model'"},
        Case{"tokenizer.json", R"({"model": {"type": "WordPiece", "vocab": {}, "merges": []}})", "model.type"},
        Case{"tokenizer.json", R"({"model": {"vocab": {"a": 1}, "merges": []}})", "end_of_word_suffix"},
        Case{"tokenizer.json", deep.c_str(), "does not parse"}}) {
    SCOPED_TRACE(std::string(c.file) + ": " + std::string(c.content).substr(0, 100));
    TempDir folder;
    write_tokenizer(folder.path());
    if (std::string(c.file) == "vocab.json" && std::string(c.message).starts_with("the left"))
      write(folder / "merges.txt", "b a\n");
    write(folder / c.file, c.content);
    const Error error = error_of(folder.path());
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr(c.message));
    EXPECT_THAT(error.message(), HasSubstr(folder.path().string()));
  }
}

/// The definition: again and again the pair of the lowest rank, the leftmost of them.
std::vector<int64_t> naive_merge(const std::string& word, const Merges& merges, const Vocabulary& vocab) {
  std::vector<std::string> parts;
  const auto symbols = byte_symbols();
  for (char c : word) parts.push_back(symbols[static_cast<unsigned char>(c)]);
  parts.back() += "</w>";
  while (true) {
    size_t best_rank = merges.size(), best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = std::find(merges.begin(), merges.end(), std::pair(parts[i], parts[i + 1]));
      if (const size_t rank = found - merges.begin(); rank < best_rank) best_rank = rank, best = i;
    }
    if (best_rank == merges.size()) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + best + 1);
  }
  std::vector<int64_t> ids;
  for (const std::string& part : parts) ids.push_back(vocab.at(part));
  return ids;
}

TEST(BytePairEncoding, TheQueueMergesInTheOrderOfTheDefinition) {
  std::mt19937_64 random(1337);
  for (int round = 0; round < 60; ++round) {
    Merges merges;
    std::vector<std::string> tokens = {"a", "b", "c", "a</w>", "b</w>", "c</w>"};
    for (int i = 0; i < 25; ++i) {
      const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
      if (left.ends_with("</w>") || std::find(tokens.begin(), tokens.end(), left + right) != tokens.end()) continue;
      merges.emplace_back(left, right);
      tokens.push_back(left + right);
    }
    const Vocabulary vocab = small_vocabulary(merges);
    const BytePairEncoding byte_pairs(vocab, merges, std::nullopt, "test");
    for (int i = 0; i < 50; ++i) {
      std::string word(1 + random() % 80, 'a');
      for (char& c : word) c = char('a' + random() % 3);
      std::vector<int64_t> ids, again;
      byte_pairs.encode(word, ids);
      byte_pairs.encode(word, again);
      ASSERT_EQ(ids, naive_merge(word, merges, vocab)) << word;
      ASSERT_EQ(again, ids);
    }
  }
}

TEST(BytePairEncoding, AByteTheVocabularyLacksIsTheUnknownToken) {
  Vocabulary vocab = small_vocabulary({});
  vocab.erase("q");
  vocab["unknown"] = 700;
  std::vector<int64_t> ids;
  BytePairEncoding(vocab, {}, 700, "test").encode("qaq", ids);
  EXPECT_THAT(ids, ElementsAre(700, 'a', 256 + 'q'));
  EXPECT_THROW(BytePairEncoding(vocab, {}, std::nullopt, "test"), Error);
}

}  // namespace
}  // namespace lorashard
