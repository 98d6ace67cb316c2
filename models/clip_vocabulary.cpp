#include "models/clip_vocabulary.h"

#include <fmt/format.h>
#include <zlib.h>

#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_set>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr size_t kMaxVocabularyBytes = size_t{64} << 20;
// OpenAI's file has more merges than CLIP uses: the vocabulary ends at 49,152 tokens before the special ones.
constexpr size_t kNumMerges = 49152 - 256 - 2;
constexpr const char* kStartOfText = "<|startoftext|>";
constexpr const char* kEndOfText = "<|endoftext|>";
constexpr const char* kEndOfWord = "</w>";

std::string utf8(int code_point) {  // below 0x800, which is all that bytes are mapped to
  if (code_point < 0x80) return std::string(1, static_cast<char>(code_point));
  return {static_cast<char>(0xc0 | (code_point >> 6)), static_cast<char>(0x80 | (code_point & 0x3f))};
}

/// OpenAI's bytes_to_unicode(): printable bytes stand for themselves and come first, the others are shifted past 255.
std::vector<std::string> byte_tokens() {
  const auto is_printable = [](int byte) {
    return (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  };
  std::vector<std::string> printable, shifted;
  for (int byte = 0; byte < 256; ++byte) {
    if (is_printable(byte)) {
      printable.push_back(utf8(byte));
    } else {
      shifted.push_back(utf8(256 + static_cast<int>(shifted.size())));
    }
  }
  printable.insert(printable.end(), shifted.begin(), shifted.end());
  return printable;
}

/// The bytes, and the bytes that end a word.
std::vector<std::string> base_tokens() {
  std::vector<std::string> tokens = byte_tokens();
  for (size_t i = 0; i < 256; ++i) tokens.push_back(tokens[i] + kEndOfWord);
  return tokens;
}

/// The file's text; gzip or plain.
std::string read_gzip(const std::filesystem::path& path) {
  const std::string doing = fmt::format("reading vocabulary '{}'", path.string());
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (!file) throw errno_error(doing, /*missing_is_usage=*/true);
  std::string text, buffer(size_t{1} << 16, '\0');
  for (;;) {
    const int count = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    if (count < 0) throw Error(ErrorKind::bad_data, doing + ": the gzip data is broken");
    if (count == 0) return text;
    text.append(buffer, 0, static_cast<size_t>(count));
    if (text.size() > kMaxVocabularyBytes) throw Error(ErrorKind::bad_data, doing + ": too large for a vocabulary");
  }
}

}  // namespace

ClipVocabulary byte_vocabulary() {
  ClipVocabulary vocabulary;
  vocabulary.tokens = base_tokens();
  vocabulary.tokens.insert(vocabulary.tokens.end(), {kStartOfText, kEndOfText});
  return vocabulary;
}

ClipVocabulary read_clip_vocabulary(const std::filesystem::path& path) {
  const std::string text = read_gzip(path);
  ClipVocabulary vocabulary;
  vocabulary.tokens = base_tokens();
  std::unordered_set<std::string> known(vocabulary.tokens.begin(), vocabulary.tokens.end());
  size_t at = text.find('\n');  // the first line is a comment
  for (size_t line = 1; line <= kNumMerges; ++line) {
    const auto fault = [&](const char* why) {
      return Error(ErrorKind::bad_data,
                   fmt::format("reading vocabulary '{}': line {} {}", path.string(), line + 1, why),
                   "expected bpe_simple_vocab_16e6.txt.gz, which PyPI's open_clip_torch brings");
    };
    if (at == text.npos) throw fault("is missing");
    const size_t end = text.find('\n', at + 1);
    const std::string merge = text.substr(at + 1, end == text.npos ? text.npos : end - at - 1);
    at = end;
    const size_t space = merge.find(' ');
    if (space == merge.npos || known.count(merge.substr(0, space)) == 0 || known.count(merge.substr(space + 1)) == 0) {
      throw fault("is not a pair of earlier tokens");
    }
    const std::string token = merge.substr(0, space) + merge.substr(space + 1);
    if (!known.insert(token).second) throw fault("gives a token that is there already");
    vocabulary.tokens.push_back(token);
    vocabulary.merges.push_back(merge);
  }
  vocabulary.tokens.insert(vocabulary.tokens.end(), {kStartOfText, kEndOfText});
  return vocabulary;
}

std::string vocab_json(const ClipVocabulary& vocabulary) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  // push_back, since operator[] of an ordered object searches all keys before it.
  auto& items = json.get_ref<nlohmann::ordered_json::object_t&>();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) items.emplace_back(vocabulary.tokens[id], id);
  return json.dump(-1, ' ', /*ensure_ascii=*/true) + "\n";
}

std::string merges_txt(const ClipVocabulary& vocabulary) {
  std::string text = "#version: 0.2\n";
  for (const std::string& merge : vocabulary.merges) text += merge + "\n";
  return text;
}

std::string tokenizer_config_json(const std::string& pad_token) {
  const nlohmann::json json = {
      {"add_prefix_space", false}, {"bos_token", kStartOfText}, {"clean_up_tokenization_spaces", true},
      {"do_lower_case", true},     {"eos_token", kEndOfText},   {"errors", "replace"},
      {"model_max_length", 77},    {"pad_token", pad_token},    {"tokenizer_class", "CLIPTokenizer"},
      {"unk_token", kEndOfText}};
  return json.dump(2) + "\n";
}

std::string special_tokens_map_json(const std::string& pad_token) {
  const nlohmann::json json = {
      {"bos_token", kStartOfText}, {"eos_token", kEndOfText}, {"pad_token", pad_token}, {"unk_token", kEndOfText}};
  return json.dump(2) + "\n";
}

}  // namespace lorashard
