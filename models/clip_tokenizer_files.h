// The files of a tokenizer folder, in every form transformers has written them, as one description. Called by
// CLIPTokenizer.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "models/byte_pair_encoding.h"

namespace lorashard {

/// A token that is found in the text before anything is split or merged.
struct AddedToken {
  std::string content;
  int64_t id = 0;
  bool single_word = false;  ///< matches only where no letter or digit adjoins it
  bool normalized = false;   ///< matches in the normalised text instead of the original
};

struct ClipTokenizerFiles {
  std::string source;  ///< the file of the vocabulary, for errors
  Vocabulary vocab;
  Merges merges;
  std::vector<AddedToken> added_tokens;  ///< no content twice
  int64_t bos = 0, eos = 0, pad = 0;
  std::optional<int64_t> unk;
  int64_t model_max_length = 77;
};

/// Reads tokenizer.json, or vocab.json + merges.txt where it is absent; beside them tokenizer_config.json, and
/// special_tokens_map.json and added_tokens.json where transformers would. Throws Error(usage) when no vocabulary is
/// there, Error(bad_data) naming the broken file.
ClipTokenizerFiles read_clip_tokenizer_files(const std::filesystem::path& folder);

}  // namespace lorashard
