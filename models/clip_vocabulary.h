// CLIP's vocabulary as OpenAI published it (bpe_simple_vocab_16e6.txt.gz), turned into the files of a tokenizer folder.
// Used by init-base alone; reading a tokenizer folder is models/clip_tokenizer.h.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

namespace lorashard {

struct ClipVocabulary {
  std::vector<std::string> tokens;  ///< in the order of their ids; the last two are <|startoftext|> and <|endoftext|>
  std::vector<std::string> merges;  ///< "i n", by priority
};

/// The 256 bytes, the same at the end of a word, and the two special tokens: 514 tokens, no merges.
ClipVocabulary byte_vocabulary();
/// The 49,408 tokens. Throws Error(usage) when `path` doesn't exist, Error(bad_data) when it isn't that file.
ClipVocabulary read_clip_vocabulary(const std::filesystem::path& path);

std::string vocab_json(const ClipVocabulary& vocabulary);
std::string merges_txt(const ClipVocabulary& vocabulary);
/// The two small configs beside them. `pad_token` is <|endoftext|> in SD 1.x and "!" in SD 2.x.
std::string tokenizer_config_json(const std::string& pad_token);
std::string special_tokens_map_json(const std::string& pad_token);

}  // namespace lorashard
