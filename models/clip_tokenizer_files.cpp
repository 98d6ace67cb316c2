#include "models/clip_tokenizer_files.h"

#include <fmt/core.h>

#include <limits>
#include <map>
#include <nlohmann/json.hpp>

#include "dist/durable_file.h"
#include "dist/error.h"

namespace lorashard {
namespace {

using Json = nlohmann::json;
namespace fs = std::filesystem;

constexpr uint64_t kMaxBytes = uint64_t{256} << 20;
constexpr int64_t kClipLength = 77;  // of every CLIP; used where a file says "no limit"
constexpr int64_t kLongestLength = 1'000'000;

[[noreturn]] void broken(const fs::path& file, const std::string& what) {
  throw Error(ErrorKind::bad_data, fmt::format("reading the tokenizer file '{}': {}", file.string(), what),
              "copy the tokenizer folder of the base model again");
}

Json parse(const fs::path& file) {
  const std::string text = read_file(file, kMaxBytes);
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) broken(file, "expected JSON, found something that does not parse");
  if (!json.is_object()) broken(file, fmt::format("expected a JSON object, found {}", json.type_name()));
  return json;
}

Json parse_if_there(const fs::path& file) { return fs::exists(file) ? parse(file) : Json::object(); }

/// What a file says of a special token: a string, or an object with flags.
struct TokenSpec {
  std::string content;
  bool single_word = false, normalized = false;
};

TokenSpec token_spec(const fs::path& file, const Json& value) {
  if (value.is_string()) return {value.get<std::string>()};
  if (!value.is_object() || !value.contains("content") || !value["content"].is_string()) {
    broken(file, "expected a token as a string or an object with 'content'");
  }
  const auto flag = [&](const char* key, bool otherwise) {
    const auto found = value.find(key);
    return found != value.end() && found->is_boolean() ? found->get<bool>() : otherwise;
  };
  return {value["content"].get<std::string>(), flag("single_word", false), flag("normalized", !flag("special", false))};
}

int64_t token_id(const fs::path& file, const std::string& token, const Json& value) {
  if (!value.is_number_integer() || value.get<int64_t>() < 0 ||
      value.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
    broken(file, fmt::format("token '{}': expected an id of 0 or more, found {}", token, value.dump()));
  }
  return value.get<int64_t>();
}

Vocabulary vocabulary(const fs::path& file, const Json& json) {
  if (!json.is_object() || json.empty()) broken(file, "expected a vocabulary: an object of tokens and ids");
  Vocabulary vocab;
  vocab.reserve(json.size());
  for (const auto& [token, id] : json.items()) vocab[token] = token_id(file, token, id);
  return vocab;
}

std::pair<std::string, std::string> split_merge(const fs::path& file, const std::string& text) {
  const size_t space = text.find(' ');
  if (space == std::string::npos || text.find(' ', space + 1) != std::string::npos) {
    broken(file, fmt::format("expected a merge as two tokens with one space between, found '{}'", text.substr(0, 80)));
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

Merges merges_of_json(const fs::path& file, const Json& json) {
  if (!json.is_array()) broken(file, "expected 'merges' to be an array");
  Merges merges;
  merges.reserve(json.size());
  for (const Json& merge : json) {
    if (merge.is_string()) {
      merges.push_back(split_merge(file, merge.get<std::string>()));
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    } else {
      broken(file, "expected a merge as a string or as a pair of strings");
    }
  }
  return merges;
}

Merges merges_of_text(const fs::path& file) {
  const std::string text = read_file(file, kMaxBytes);
  Merges merges;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    std::string line = text.substr(begin, end - begin);
    begin = end + 1;
    if (line.ends_with('\r')) line.pop_back();
    if (line.empty() || line.starts_with("#version")) continue;
    merges.push_back(split_merge(file, line));
  }
  return merges;
}

void check_model(const fs::path& file, const Json& model) {
  const auto is = [&](const char* key, const Json& expected, bool may_lack) {
    const auto found = model.find(key);
    if (found == model.end() ? !may_lack : *found != expected) {
      broken(file, fmt::format("model.{}: expected {}, found {}", key, expected.dump(),
                               found == model.end() ? "nothing" : found->dump()));
    }
  };
  if (!model.is_object() || !model.contains("vocab") || !model.contains("merges")) {
    broken(file, "expected 'model' with 'vocab' and 'merges'");
  }
  is("type", "BPE", true);
  is("end_of_word_suffix", "</w>", false);
}

/// The tokens found in the text before all else, gathered the way transformers 5 does it, in its order: a later
/// entry of the same content decides the flags, and a token without an id in the vocabulary gets the next free one.
class SpecialTokens {
 public:
  SpecialTokens(const fs::path& folder, const Json& tokenizer_json) : folder_(folder) {
    config_ = parse_if_there(folder / "tokenizer_config.json");
    const fs::path config_file = folder / "tokenizer_config.json";
    read_named(config_file, config_);
    if (const auto decoder = config_.find("added_tokens_decoder"); decoder != config_.end()) {
      if (!decoder->is_object()) broken(config_file, "expected 'added_tokens_decoder' to be an object");
      for (const auto& [id, value] : decoder->items())
        numbered_[number(config_file, id)] = token_spec(config_file, value);
    } else {
      // Folders from before transformers 4.34; tokenizer.json's own list counts only for these and for those of
      // version 5.
      const Json map = parse_if_there(folder / "special_tokens_map.json");
      read_named(folder / "special_tokens_map.json", map);
      read_added_tokens_json();
      read_tokenizer_json(tokenizer_json);
    }
    for (auto& [name, spec] : named_) {
      for (const auto& [id, numbered] : numbered_) {
        if (numbered.content == spec.content) spec = numbered;
      }
    }
  }

  void add_to(ClipTokenizerFiles& files) const {
    for (const auto& [id, spec] : numbered_) add(files, spec);
    for (const char* name : kNames) {
      if (const auto found = named_.find(name); found != named_.end()) add(files, found->second);
    }
    for (const TokenSpec& spec : extra_) add(files, spec);
    files.bos = id_of(files, "bos_token");
    files.eos = id_of(files, "eos_token");
    files.pad = id_of(files, "pad_token");
    files.unk = id_of(files, "unk_token");
  }

  int64_t model_max_length() const {
    const auto found = config_.find("model_max_length");
    if (found == config_.end() || !found->is_number()) return kClipLength;
    const double length = found->get<double>();
    if (length > double(kLongestLength)) return kClipLength;
    if (length < 2)
      broken(folder_ / "tokenizer_config.json",
             fmt::format("expected a model_max_length of 2 or more, found {}", length));
    return int64_t(length);
  }

 private:
  static constexpr const char* kNames[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                           "pad_token", "cls_token", "mask_token"};

  static int64_t number(const fs::path& file, const std::string& text) {
    if (text.empty() || text.size() > 9 || text.find_first_not_of("0123456789") != std::string::npos) {
      broken(file, fmt::format("'added_tokens_decoder': expected ids as keys, found '{}'", text));
    }
    return std::stoll(text);
  }

  void read_named(const fs::path& file, const Json& json) {
    for (const char* name : kNames) {
      const auto found = json.find(name);
      if (found != json.end() && !found->is_null()) named_[name] = token_spec(file, *found);
    }
    for (const char* key : {"additional_special_tokens", "extra_special_tokens"}) {
      const auto found = json.find(key);
      if (found == json.end() || !found->is_array()) continue;
      for (const Json& value : *found) extra_.push_back(token_spec(file, value));
    }
  }

  void read_added_tokens_json() {
    const fs::path file = folder_ / "added_tokens.json";
    const Json json = parse_if_there(file);
    for (const auto& [token, id] : json.items()) {
      bool special = false;
      for (const auto& [name, spec] : named_) special = special || spec.content == token;
      for (const TokenSpec& spec : extra_) special = special || spec.content == token;
      numbered_[token_id(file, token, id)] = {token, false, !special};
    }
  }

  void read_tokenizer_json(const Json& json) {
    const fs::path file = folder_ / "tokenizer.json";
    const auto found = json.find("added_tokens");
    if (found == json.end()) return;
    if (!found->is_array()) broken(file, "expected 'added_tokens' to be an array");
    for (const Json& value : *found) {
      const TokenSpec spec = token_spec(file, value);
      if (!value.is_object() || !value.contains("id")) broken(file, "expected each of 'added_tokens' to have an id");
      numbered_[token_id(file, spec.content, value["id"])] = spec;
    }
  }

  static int64_t add(ClipTokenizerFiles& files, const TokenSpec& spec) {
    if (spec.content.empty()) return -1;
    int64_t next = int64_t(files.vocab.size());
    for (AddedToken& added : files.added_tokens) {
      if (added.content == spec.content) {
        added.single_word = spec.single_word;
        added.normalized = spec.normalized;
        return added.id;
      }
      next = std::max(next, added.id + 1);
    }
    const auto known = files.vocab.find(spec.content);
    const int64_t id = known != files.vocab.end() ? known->second : next;
    files.added_tokens.push_back({spec.content, id, spec.single_word, spec.normalized});
    return id;
  }

  int64_t id_of(const ClipTokenizerFiles& files, const char* name) const {
    const std::string& content = named_.at(name).content;
    bool known = files.vocab.contains(content);
    for (const auto& [id, spec] : numbered_) known = known || spec.content == content;
    if (!known) broken(files.source, fmt::format("the {} '{}' is not in the vocabulary", name, content));
    for (const AddedToken& added : files.added_tokens) {
      if (added.content == content) return added.id;
    }
    broken(folder_ / "tokenizer_config.json", fmt::format("the {} is empty", name));
  }

  fs::path folder_;
  Json config_;
  std::map<std::string, TokenSpec> named_ = {{"bos_token", {"<|startoftext|>"}},
                                             {"eos_token", {"<|endoftext|>"}},
                                             {"unk_token", {"<|endoftext|>"}},
                                             {"pad_token", {"<|endoftext|>"}}};
  std::map<int64_t, TokenSpec> numbered_;
  std::vector<TokenSpec> extra_;
};

}  // namespace

ClipTokenizerFiles read_clip_tokenizer_files(const fs::path& folder) {
  ClipTokenizerFiles files;
  Json tokenizer_json = Json::object();
  if (const fs::path file = folder / "tokenizer.json"; fs::exists(file)) {
    tokenizer_json = parse(file);
    const auto model = tokenizer_json.find("model");
    if (model == tokenizer_json.end()) broken(file, "expected 'model' with 'vocab' and 'merges'");
    check_model(file, *model);
    files.source = file.string();
    files.vocab = vocabulary(file, (*model)["vocab"]);
    files.merges = merges_of_json(file, (*model)["merges"]);
  } else if (fs::exists(folder / "vocab.json")) {
    files.source = (folder / "vocab.json").string();
    files.vocab = vocabulary(folder / "vocab.json", parse(folder / "vocab.json"));
    files.merges = merges_of_text(folder / "merges.txt");
  } else {
    throw Error(
        ErrorKind::usage,
        fmt::format("reading the tokenizer '{}': expected tokenizer.json, or vocab.json and merges.txt, found neither",
                    folder.string()),
        "give the folder of a diffusers pipeline, with its tokenizer in it");
  }
  const SpecialTokens special_tokens(folder, tokenizer_json);
  special_tokens.add_to(files);
  files.model_max_length = special_tokens.model_max_length();
  return files;
}

}  // namespace lorashard
