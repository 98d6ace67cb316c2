#include "models/clip_text.h"

#include <re2/re2.h>
#include <unicode/normalizer2.h>
#include <unicode/uchar.h>
#include <unicode/uniset.h>
#include <unicode/unistr.h>
#include <unicode/utf8.h>

#include <algorithm>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

using icu::UnicodeString;

// The tokenizers package cuts words by Unicode 16. Debian's RE2 has Unicode 15, so what came after is listed.
constexpr const char* kLetters =
    R"(\p{L}\x{1C89}\x{1C8A}\x{A7CB}-\x{A7CD}\x{A7DA}-\x{A7DC}\x{105C0}-\x{105F3}\x{10D4A}-\x{10D65}\x{10D6F}-\x{10D85})"
    R"(\x{10EC2}-\x{10EC4}\x{11380}-\x{11389}\x{1138B}\x{1138E}\x{11390}-\x{113B5}\x{113B7}\x{113D1}\x{113D3})"
    R"(\x{11BC0}-\x{11BE0}\x{13460}-\x{143FA}\x{16100}-\x{1611D}\x{16D40}-\x{16D6C}\x{18CFF}\x{1E5D0}-\x{1E5ED})"
    R"(\x{1E5F0}\x{2EBF0}-\x{2EE5D})";
constexpr const char* kNumbers =
    R"(\p{N}\x{10D40}-\x{10D49}\x{116D0}-\x{116E3}\x{11BF0}-\x{11BF9}\x{16130}-\x{16139}\x{16D70}-\x{16D79})"
    R"(\x{1CCF0}-\x{1CCF9}\x{1E5F1}-\x{1E5FA})";
constexpr const char* kSpaces = R"(\t-\r \x{85}\p{Z})";

// Lower case is of Unicode 17 there; ICU 72 has Unicode 15. Ranges [first, last] and the distance to the lower case.
struct LowerCase {
  UChar32 first, last, distance;
};
constexpr LowerCase kLowerCase[] = {
    {0x1C89, 0x1C89, 1},      {0xA7CB, 0xA7CB, 0x264 - 0xA7CB},
    {0xA7CC, 0xA7CC, 1},      {0xA7CE, 0xA7CE, 1},
    {0xA7D2, 0xA7D2, 1},      {0xA7D4, 0xA7D4, 1},
    {0xA7DA, 0xA7DA, 1},      {0xA7DC, 0xA7DC, 0x19B - 0xA7DC},
    {0x10D50, 0x10D65, 0x20}, {0x16EA0, 0x16EB8, 0x1B},
};

UChar32 lower(UChar32 c) {
  for (const LowerCase& range : kLowerCase) {
    if (c >= range.first && c <= range.last) return c + range.distance;
  }
  return u_tolower(c);
}

bool is_space(UChar32 c) {
  return (c >= 0x9 && c <= 0xD) || c == 0x85 || (c == 0x20) || (c > 0x7F && (U_GET_GC_MASK(c) & U_GC_Z_MASK) != 0);
}

/// \w of Rust's regex: Alphabetic, marks, decimal digits, connectors, joiners.
bool is_word(UChar32 c) {
  return u_isUAlphabetic(c) || (U_GET_GC_MASK(c) & (U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK)) != 0 || c == 0x200C ||
         c == 0x200D;
}

bool is_ascii(std::string_view text) {
  return std::all_of(text.begin(), text.end(), [](char c) { return static_cast<unsigned char>(c) < 0x80; });
}

/// Blanks for white space, lower case; `next` gives code points and a negative number at the end.
template <class Next>
std::string fold(size_t room, const Next& next) {
  std::string out;
  out.reserve(room + 8);
  const auto put = [&out](UChar32 c) {
    char bytes[U8_MAX_LENGTH];
    int32_t length = 0;
    U8_APPEND_UNSAFE(bytes, length, c);
    out.append(bytes, length);
  };
  bool after_space = false;
  for (UChar32 c = next(); c >= 0; c = next()) {
    const bool space = is_space(c);
    if (space && !after_space) out += ' ';
    after_space = space;
    if (space) continue;
    put(lower(c));
    if (c == 0x130) put(0x307);  // the one capital whose lower case is two characters
  }
  return out;
}

}  // namespace

struct ClipText::Impl {
  Impl()
      : words(fmt::format(R"(<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[{0}]+|[{1}]|[^{2}{0}{1}]+)",
                          kLetters, kNumbers, kSpaces)) {
    LORASHARD_CHECK(words.ok(), "{}", words.error());
    UErrorCode status = U_ZERO_ERROR;
    nfc = icu::Normalizer2::getNFCInstance(status);
    // NFC is of Unicode 9 there: later characters neither compose nor change places.
    nfc_characters = icu::UnicodeSet(UNICODE_STRING_SIMPLE("[:age=9.0:]"), status);
    LORASHARD_CHECK(U_SUCCESS(status), "ICU's NFC: {}", u_errorName(status));
    nfc_characters.freeze();
    filtered_nfc = std::make_unique<icu::FilteredNormalizer2>(*nfc, nfc_characters);
  }

  /// Canonical decomposition with its marks in canonical order, in n log n: ICU's own reordering is quadratic in a run
  /// of marks.
  UnicodeString decompose(const UnicodeString& text) const {
    std::vector<UChar32> code_points;
    code_points.reserve(text.length());
    UnicodeString parts;
    for (int32_t i = 0; i < text.length(); i += U16_LENGTH(text.char32At(i))) {
      const UChar32 c = text.char32At(i);
      if (!nfc_characters.contains(c) || !nfc->getDecomposition(c, parts)) {
        code_points.push_back(c);
        continue;
      }
      for (int32_t j = 0; j < parts.length(); j += U16_LENGTH(parts.char32At(j)))
        code_points.push_back(parts.char32At(j));
    }
    const auto order = [&](UChar32 c) { return nfc_characters.contains(c) ? nfc->getCombiningClass(c) : 0; };
    for (auto begin = code_points.begin(); begin != code_points.end();) {
      begin = std::find_if(begin, code_points.end(), [&](UChar32 c) { return order(c) != 0; });
      const auto end = std::find_if(begin, code_points.end(), [&](UChar32 c) { return order(c) == 0; });
      std::stable_sort(begin, end, [&](UChar32 a, UChar32 b) { return order(a) < order(b); });
      begin = end;
    }
    return UnicodeString::fromUTF32(code_points.data(), int32_t(code_points.size()));
  }

  UnicodeString to_nfc(const UnicodeString& text) const {
    UErrorCode status = U_ZERO_ERROR;
    if (filtered_nfc->quickCheck(text, status) == UNORM_YES) return text;
    UnicodeString out;
    const icu::Normalizer2& normalizer = *filtered_nfc;
    normalizer.normalize(decompose(text), out, status);
    LORASHARD_CHECK(U_SUCCESS(status), "ICU's NFC: {}", u_errorName(status));
    return out;
  }

  RE2 words;
  const icu::Normalizer2* nfc = nullptr;
  icu::UnicodeSet nfc_characters;
  std::unique_ptr<icu::FilteredNormalizer2> filtered_nfc;
};

ClipText::ClipText() : impl_(std::make_shared<const Impl>()) {}

std::string ClipText::normalize(std::string_view text) const {
  size_t i = 0;
  if (is_ascii(text)) return fold(text.size(), [&] { return i < text.size() ? UChar32(text[i++]) : -1; });
  LORASHARD_CHECK(text.size() < (size_t{1} << 30), "a text of {} bytes is too long to tokenize", text.size());
  const UnicodeString normal =
      impl_->to_nfc(UnicodeString::fromUTF8(icu::StringPiece(text.data(), int32_t(text.size()))));
  int32_t at = 0;
  return fold(text.size(), [&]() -> UChar32 {
    if (at >= normal.length()) return -1;
    const UChar32 c = normal.char32At(at);
    at += U16_LENGTH(c);
    return c;
  });
}

void ClipText::for_each_word(std::string_view normalized, const std::function<bool(std::string_view)>& take) const {
  const re2::StringPiece whole(normalized.data(), normalized.size());
  re2::StringPiece word;
  // The whole match alone is asked for: a capture would run RE2's slow engine over it.
  for (size_t at = 0; impl_->words.Match(whole, at, whole.size(), RE2::UNANCHORED, &word, 1);) {
    at = size_t(word.data() - whole.data()) + word.size();
    const std::string_view found(word.data(), word.size());
    // A byte-level step follows in tokenizers; it cuts these two again, which are not added tokens when they come here.
    if (found == "<|startoftext|>" || found == "<|endoftext|>") {
      if (!take("<|") || !take(found.substr(2, found.size() - 4)) || !take("|>")) return;
    } else if (!take(found)) {
      return;
    }
  }
}

bool ClipText::ends_with_word(std::string_view before) {
  if (before.empty()) return false;
  int32_t i = int32_t(before.size());
  UChar32 c = 0;
  U8_PREV(before.data(), 0, i, c);
  return c >= 0 && is_word(c);
}

bool ClipText::starts_with_word(std::string_view after) {
  if (after.empty()) return false;
  int32_t i = 0;
  UChar32 c = 0;
  U8_NEXT(after.data(), i, int32_t(after.size()), c);
  return c >= 0 && is_word(c);
}

}  // namespace lorashard
