#include "models/clip_tokenizer.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <functional>
#include <string_view>

#include "models/byte_pair_encoding.h"
#include "models/clip_text.h"
#include "models/clip_tokenizer_files.h"

namespace lorashard {
namespace {

/// Finds added tokens in a text: the leftmost, the longest of those that begin there. White space that a token strips
/// beside it (lstrip, rstrip) needs no care, since no id ever comes from white space.
class AddedTokenFinder {
 public:
  void add(const std::string& pattern, const AddedToken& token) {
    if (!pattern.empty())
      by_first_byte_[static_cast<unsigned char>(pattern[0])].push_back({pattern, token.id, token.single_word});
  }
  void finish() {
    for (auto& entries : by_first_byte_) {
      std::stable_sort(entries.begin(), entries.end(),
                       [](const Entry& a, const Entry& b) { return a.pattern.size() > b.pattern.size(); });
    }
  }

  /// Calls `text_piece` and `token` in the order of the text; either returns false to stop. False when stopped.
  bool split(std::string_view text, const std::function<bool(std::string_view)>& text_piece,
             const std::function<bool(int64_t)>& token) const {
    size_t piece = 0;
    for (size_t i = 0; i < text.size();) {
      const Entry* found = longest_at(text, i);
      if (found == nullptr) {
        ++i;
        continue;
      }
      const size_t end = i + found->pattern.size();
      if (found->single_word &&
          (ClipText::ends_with_word(text.substr(0, i)) || ClipText::starts_with_word(text.substr(end)))) {
        i = end;
        continue;
      }
      if (i > piece && !text_piece(text.substr(piece, i - piece))) return false;
      if (!token(found->id)) return false;
      i = piece = end;
    }
    return piece >= text.size() || text_piece(text.substr(piece));
  }

 private:
  struct Entry {
    std::string pattern;
    int64_t id;
    bool single_word;
  };
  const Entry* longest_at(std::string_view text, size_t at) const {
    for (const Entry& entry : by_first_byte_[static_cast<unsigned char>(text[at])]) {
      if (text.substr(at).starts_with(entry.pattern)) return &entry;
    }
    return nullptr;
  }
  std::array<std::vector<Entry>, 256> by_first_byte_;
};

}  // namespace

struct CLIPTokenizer::Impl {
  explicit Impl(const ClipTokenizerFiles& files)
      : bos(files.bos),
        eos(files.eos),
        pad(files.pad),
        model_max_length(files.model_max_length),
        byte_pairs(files.vocab, files.merges, files.unk, files.source) {
    for (const AddedToken& token : files.added_tokens) {
      if (token.normalized) {
        in_normalized.add(text.normalize(token.content), token);
      } else {
        in_original.add(token.content, token);
      }
    }
    in_original.finish();
    in_normalized.finish();
  }

  /// The ids between the first and the last; `limit` of them at most, since what follows would be cut off anyway.
  void encode_content(std::string_view caption, size_t limit, std::vector<int64_t>& ids) const {
    const auto full = [&] { return ids.size() >= limit; };
    const auto token = [&](int64_t id) {
      if (!full()) ids.push_back(id);
      return !full();
    };
    const auto words = [&](std::string_view normalized) {
      text.for_each_word(normalized, [&](std::string_view word) {
        byte_pairs.encode(word, ids);
        return !full();
      });
      return !full();
    };
    const auto piece = [&](std::string_view original) {
      return in_normalized.split(text.normalize(original), words, token);
    };
    if (limit > 0) in_original.split(caption, piece, token);
    if (ids.size() > limit) ids.resize(limit);
  }

  int64_t bos, eos, pad, model_max_length;
  ClipText text;
  BytePairEncoding byte_pairs;
  AddedTokenFinder in_original, in_normalized;
};

CLIPTokenizer::CLIPTokenizer(const std::filesystem::path& folder) : CLIPTokenizer(read_clip_tokenizer_files(folder)) {}

CLIPTokenizer::CLIPTokenizer(const ClipTokenizerFiles& files) : impl_(std::make_shared<const Impl>(files)) {}

std::vector<int64_t> CLIPTokenizer::encode(const std::string& text) const {
  std::vector<int64_t> content;
  impl_->encode_content(text, size_t(impl_->model_max_length - 2), content);
  std::vector<int64_t> ids;
  ids.reserve(content.size() + 2);
  ids.push_back(impl_->bos);
  ids.insert(ids.end(), content.begin(), content.end());
  ids.push_back(impl_->eos);
  return ids;
}

at::Tensor CLIPTokenizer::operator()(const std::vector<std::string>& texts) const {
  at::Tensor input_ids = at::full({int64_t(texts.size()), impl_->model_max_length}, impl_->pad, at::kLong);
  int64_t* row = input_ids.data_ptr<int64_t>();
  for (const std::string& text : texts) {
    const std::vector<int64_t> ids = encode(text);
    std::copy(ids.begin(), ids.end(), row);
    row += impl_->model_max_length;
  }
  return input_ids;
}

int64_t CLIPTokenizer::model_max_length() const { return impl_->model_max_length; }

}  // namespace lorashard
