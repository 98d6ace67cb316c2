#include "data/png_text.h"

#include <algorithm>
#include <string_view>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr size_t kSignatureBytes = 8;
constexpr size_t kEndOfHeader = kSignatureBytes + 25;  // IHDR: 13 bytes, and 12 that every chunk has

void append_big_endian(std::string& out, uint32_t value) {
  for (int shift = 24; shift >= 0; shift -= 8) out += static_cast<char>(value >> shift & 0xFF);
}

/// CRC-32 as PNG has it, over type and data of a chunk.
uint32_t crc32(std::string_view bytes) {
  uint32_t crc = 0xFFFFFFFFU;
  for (const char c : bytes) {
    crc ^= static_cast<uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ ((crc & 1) != 0 ? 0xEDB88320U : 0U);
  }
  return ~crc;
}

std::string chunk(const std::string& type_and_data) {
  std::string out;
  append_big_endian(out, static_cast<uint32_t>(type_and_data.size() - 4));
  out += type_and_data;
  append_big_endian(out, crc32(type_and_data));
  return out;
}

uint32_t read_big_endian(std::string_view bytes) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<uint8_t>(bytes[i]);
  return value;
}

}  // namespace

std::vector<uint8_t> add_png_text(const std::vector<uint8_t>& png, const std::string& keyword,
                                  const std::string& text) {
  LORASHARD_CHECK(png.size() > kEndOfHeader, "a PNG of {} bytes", png.size());
  LORASHARD_CHECK(!keyword.empty() && keyword.size() <= 79, "a PNG keyword of {} characters", keyword.size());
  const bool ascii = std::ranges::all_of(text, [](char c) { return static_cast<uint8_t>(c) < 0x80; });
  std::string data = (ascii ? "tEXt" : "iTXt") + keyword + '\0';
  if (!ascii) data += std::string(4, '\0');  // not compressed; no language; no translated keyword
  for (const char c : text)
    if (c != '\0') data += c;
  const std::string words = chunk(data);
  std::vector<uint8_t> out(png.begin(), png.begin() + kEndOfHeader);
  out.insert(out.end(), words.begin(), words.end());
  out.insert(out.end(), png.begin() + kEndOfHeader, png.end());
  return out;
}

std::string png_text(const std::vector<uint8_t>& png, const std::string& keyword) {
  const std::string_view bytes(reinterpret_cast<const char*>(png.data()), png.size());
  for (size_t at = kSignatureBytes; at + 12 <= bytes.size();) {
    const size_t size = read_big_endian(bytes.substr(at));
    if (size > bytes.size() - at - 12) break;
    const std::string_view type = bytes.substr(at + 4, 4), data = bytes.substr(at + 8, size);
    at += size + 12;
    if (type != "tEXt" && type != "iTXt") continue;
    const size_t more = type == "iTXt" ? 5 : 1;
    if (data.size() < keyword.size() + more || !data.starts_with(keyword) || data[keyword.size()] != '\0') continue;
    return std::string(data.substr(keyword.size() + more));
  }
  return "";
}

}  // namespace lorashard
