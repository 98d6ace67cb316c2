#include "data/utf8.h"

#include <cstdint>

namespace lorashard {

bool is_valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto byte = [&](size_t at) -> uint8_t { return at < text.size() ? static_cast<uint8_t>(text[at]) : 0; };
    const uint8_t first = byte(i);
    size_t length = 1;
    uint8_t low = 0x80, high = 0xbf;  // of the second byte
    if (first >= 0xc2 && first <= 0xdf) {
      length = 2;
    } else if (first >= 0xe0 && first <= 0xef) {
      length = 3;
      if (first == 0xe0) low = 0xa0;
      if (first == 0xed) high = 0x9f;
    } else if (first >= 0xf0 && first <= 0xf4) {
      length = 4;
      if (first == 0xf0) low = 0x90;
      if (first == 0xf4) high = 0x8f;
    } else if (first >= 0x80) {
      return false;
    }
    if (length > 1 && (byte(i + 1) < low || byte(i + 1) > high)) return false;
    for (size_t k = 2; k < length; ++k)
      if (byte(i + k) < 0x80 || byte(i + k) > 0xbf) return false;
    i += length;
  }
  return true;
}

}  // namespace lorashard
