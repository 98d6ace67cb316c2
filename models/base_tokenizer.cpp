#include "models/base_tokenizer.h"

#include <fmt/core.h>

#include "dist/error.h"
#include "models/clip_tokenizer_files.h"
#include "models/clip_vocabulary.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

ClipTokenizerFiles files_of_vocabulary(const fs::path& path) {
  const ClipVocabulary vocabulary = read_clip_vocabulary(path);
  ClipTokenizerFiles files;
  files.source = path.string();
  for (size_t id = 0; id < vocabulary.tokens.size(); ++id) files.vocab[vocabulary.tokens[id]] = static_cast<int64_t>(id);
  for (const std::string& merge : vocabulary.merges) {
    const size_t space = merge.find(' ');
    files.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
  }
  files.eos = static_cast<int64_t>(vocabulary.tokens.size()) - 1;
  files.bos = files.eos - 1;
  files.unk = files.pad = files.eos;
  for (const int64_t id : {files.bos, files.eos})
    files.added_tokens.push_back({.content = vocabulary.tokens[static_cast<size_t>(id)], .id = id});
  return files;
}

/// The pad token is also found in texts, as transformers does with every special token.
void override_pad(ClipTokenizerFiles& files, const std::string& pad_token) {
  const auto known = files.vocab.find(pad_token);
  if (known == files.vocab.end()) {
    throw Error(ErrorKind::bad_data, fmt::format("reading the tokenizer '{}': the pad token '{}' is not in the vocabulary",
                                                 files.source, pad_token));
  }
  files.pad = known->second;
  for (const AddedToken& token : files.added_tokens) {
    if (token.content == pad_token) return;
  }
  files.added_tokens.push_back({.content = pad_token, .id = files.pad});
}

}  // namespace

std::string pad_token_of(const CLIPTextConfig& text_encoder) {
  return text_encoder.hidden_act == "quick_gelu" ? "<|endoftext|>" : "!";
}

TokenizerSource find_tokenizer(const fs::path& given, const std::string& name, const CLIPTextConfig& text_encoder) {
  if (!fs::exists(given)) {
    throw Error(ErrorKind::usage, fmt::format("loading the tokenizer '{}': there is no such file or folder", given.string()),
                "give a tokenizer's folder, a pipeline's folder, or CLIP's bpe_simple_vocab_16e6.txt.gz");
  }
  if (fs::is_directory(given / name)) return {given / name};
  return {fs::is_directory(given / "tokenizer") ? given / "tokenizer" : given, pad_token_of(text_encoder)};
}

std::shared_ptr<CLIPTokenizer> make_tokenizer(const TokenizerSource& source) {
  ClipTokenizerFiles files =
      fs::is_regular_file(source.path) ? files_of_vocabulary(source.path) : read_clip_tokenizer_files(source.path);
  if (!source.pad_token.empty()) override_pad(files, source.pad_token);
  return std::make_shared<CLIPTokenizer>(files);
}

void add_tokenizer_files(std::vector<NamedFile>& files, const std::string& name, const TokenizerSource& source) {
  if (fs::is_regular_file(source.path)) {
    files.emplace_back(name + "/vocabulary", source.path);
    return;
  }
  for (const char* file :
       {"vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}) {
    if (fs::is_regular_file(source.path / file)) files.emplace_back(name + "/" + file, source.path / file);
  }
}

}  // namespace lorashard
