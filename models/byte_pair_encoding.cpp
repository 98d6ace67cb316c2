#include "models/byte_pair_encoding.h"

#include <fmt/core.h>

#include <limits>
#include <mutex>
#include <queue>

#include "dist/error.h"

namespace lorashard {
namespace {

// Captions repeat a few thousand short words; what is longer or comes after that many is computed anew.
constexpr size_t kCachedWords = 65536;
constexpr size_t kCachedBytes = 64;

void append_utf8(std::string& out, uint32_t code_point) {
  if (code_point < 0x80) {
    out += char(code_point);
  } else {
    out += char(0xC0 | (code_point >> 6));
    out += char(0x80 | (code_point & 0x3F));
  }
}

/// GPT-2's printable stand-in for each byte: itself where it is printable in Latin-1, else the next one from U+0100.
std::array<std::string, 256> byte_symbols() {
  std::array<std::string, 256> symbols;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    append_utf8(symbols[byte], printable ? byte : next++);
  }
  return symbols;
}

struct Symbol {
  uint32_t id;
  int64_t previous, next;
  bool merged_away;
};

struct Candidate {
  uint32_t rank;
  int64_t position;
  uint32_t id;
  bool operator>(const Candidate& other) const {
    return rank != other.rank ? rank > other.rank : position > other.position;
  }
};

}  // namespace

BytePairEncoding::BytePairEncoding(const Vocabulary& vocab, const Merges& merges, std::optional<int64_t> unk,
                                   const std::string& source) {
  const auto id_of = [&](const std::string& token, const char* what) {
    const auto found = vocab.find(token);
    if (found == vocab.end()) {
      throw Error(ErrorKind::bad_data,
                  fmt::format("reading the tokenizer '{}': {} '{}' is not in the vocabulary", source, what, token),
                  "vocabulary and merges must come from the same model");
    }
    return uint32_t(found->second);
  };
  const auto symbols = byte_symbols();
  for (int byte = 0; byte < 256; ++byte) {
    const auto symbol_id = [&](const std::string& symbol) {
      return unk && !vocab.contains(symbol) ? uint32_t(*unk) : id_of(symbol, "the symbol of a byte,");
    };
    inner_[byte] = symbol_id(symbols[byte]);
    last_[byte] = symbol_id(symbols[byte] + "</w>");
  }
  merges_.reserve(merges.size());
  for (size_t rank = 0; rank < merges.size(); ++rank) {
    const auto& [left, right] = merges[rank];
    const uint64_t key = uint64_t(id_of(left, "the left of a merge,")) << 32 | id_of(right, "the right of a merge,");
    merges_[key] = Merge{uint32_t(rank), id_of(left + right, "the result of a merge,")};
  }
}

const BytePairEncoding::Merge* BytePairEncoding::find(uint32_t left, uint32_t right) const {
  const auto found = merges_.find(uint64_t(left) << 32 | right);
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairEncoding::encode(std::string_view word, std::vector<int64_t>& ids) const {
  if (word.empty()) return;
  if (word.size() > kCachedBytes) {
    const auto merged = merge(word);
    ids.insert(ids.end(), merged.begin(), merged.end());
    return;
  }
  {
    std::shared_lock lock(mutex_);
    const auto cached = cache_.find(word);
    if (cached != cache_.end()) {
      ids.insert(ids.end(), cached->second.begin(), cached->second.end());
      return;
    }
  }
  auto merged = merge(word);
  ids.insert(ids.end(), merged.begin(), merged.end());
  std::unique_lock lock(mutex_);
  if (cache_.size() < kCachedWords) cache_.emplace(word, std::move(merged));
}

std::vector<int64_t> BytePairEncoding::merge(std::string_view word) const {
  const int64_t count = int64_t(word.size());
  std::vector<Symbol> symbols(count);
  for (int64_t i = 0; i < count; ++i) {
    const auto byte = static_cast<unsigned char>(word[i]);
    symbols[i] = {i + 1 == count ? last_[byte] : inner_[byte], i - 1, i + 1 == count ? -1 : i + 1, false};
  }
  // The lowest rank first, the leftmost among equals. An entry that a later merge made stale is recognised when it
  // comes up.
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
  const auto offer = [&](int64_t left) {
    if (left < 0 || symbols[left].next < 0) return;
    if (const Merge* m = find(symbols[left].id, symbols[symbols[left].next].id)) queue.push({m->rank, left, m->id});
  };
  for (int64_t i = 0; i + 1 < count; ++i) offer(i);
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    Symbol& left = symbols[top.position];
    if (left.merged_away || left.next < 0) continue;
    Symbol& right = symbols[left.next];
    const Merge* still = find(left.id, right.id);
    if (still == nullptr || still->id != top.id) continue;
    left.id = top.id;
    left.next = right.next;
    right.merged_away = true;
    if (left.next >= 0) symbols[left.next].previous = top.position;
    offer(left.previous);
    offer(top.position);
  }
  std::vector<int64_t> ids;
  for (int64_t i = 0; i >= 0; i = symbols[i].next) ids.push_back(symbols[i].id);
  return ids;
}

}  // namespace lorashard
