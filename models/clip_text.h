// The text side of CLIP's tokenizer: what it folds together (NFC, white space, case) and where it cuts words.
// Character properties are those of Hugging Face's tokenizers 0.23, whatever ICU and RE2 are installed. Thread-safe.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <string_view>

namespace lorashard {

class ClipText {
 public:
  ClipText();
  /// NFC, every run of white space as one blank, lower case. Bytes that are not UTF-8 become U+FFFD.
  std::string normalize(std::string_view text) const;
  /// Calls `take` for each word of normalised text, in order, until it returns false.
  void for_each_word(std::string_view normalized, const std::function<bool(std::string_view)>& take) const;

  /// Whether a character of \w ends `before`, or begins `after`.
  static bool ends_with_word(std::string_view before);
  static bool starts_with_word(std::string_view after);

 private:
  struct Impl;
  std::shared_ptr<const Impl> impl_;
};

}  // namespace lorashard
