// CLIP's byte-level BPE, id for id what transformers' CLIPTokenizer gives. Thread-safe.
#pragma once
#include <ATen/core/Tensor.h>

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace lorashard {

struct ClipTokenizerFiles;

class CLIPTokenizer {
 public:
  /// Reads tokenizer.json, or vocab.json + merges.txt where it is absent, and the special tokens and length beside it.
  /// Throws Error(usage) when none is there, Error(bad_data) for a broken one.
  explicit CLIPTokenizer(const std::filesystem::path& folder);
  /// What such files say (models/clip_tokenizer_files.h).
  explicit CLIPTokenizer(const ClipTokenizerFiles& files);

  /// Ids of `text` with <|startoftext|> and <|endoftext|>, truncated to model_max_length; not padded.
  std::vector<int64_t> encode(const std::string& text) const;
  /// int64 [texts, model_max_length], padded.
  at::Tensor operator()(const std::vector<std::string>& texts) const;
  int64_t model_max_length() const;

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace lorashard
