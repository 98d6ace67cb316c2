// Byte-level BPE of one word with </w> at its end: the merge order of Hugging Face's tokenizers, in n log n.
// Thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <shared_mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace lorashard {

using Vocabulary = std::unordered_map<std::string, int64_t>;
using Merges = std::vector<std::pair<std::string, std::string>>;  ///< in order of rank

class BytePairEncoding {
 public:
  /// `unk` stands for a byte the vocabulary lacks. Throws Error(bad_data) naming `source` when a merge is not of the
  /// vocabulary, or a byte is in neither.
  BytePairEncoding(const Vocabulary& vocab, const Merges& merges, std::optional<int64_t> unk,
                   const std::string& source);

  /// Appends the ids of `word` (any bytes).
  void encode(std::string_view word, std::vector<int64_t>& ids) const;

 private:
  struct Merge {
    uint32_t rank = 0;
    uint32_t id = 0;
  };
  struct Hash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  const Merge* find(uint32_t left, uint32_t right) const;
  std::vector<int64_t> merge(std::string_view word) const;

  std::array<uint32_t, 256> inner_{}, last_{};  // id of a byte inside a word and at its end
  std::unordered_map<uint64_t, Merge> merges_;  // by left id << 32 | right id
  mutable std::shared_mutex mutex_;
  mutable std::unordered_map<std::string, std::vector<int64_t>, Hash, std::equal_to<>> cache_;
};

}  // namespace lorashard
