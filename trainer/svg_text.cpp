#include "trainer/svg_text.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <string_view>
#include <utility>

namespace lorashard {
namespace {

/// Bytes of the UTF-8 character that begins with `lead`.
size_t character_bytes(char lead) {
  const auto byte = static_cast<uint8_t>(lead);
  return byte < 0xc0 ? 1 : byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : 4;
}

double character_width(std::string_view character) {
  if (character.size() >= 3) return 1.0;  // beyond Latin, Greek, Cyrillic: Chinese, Japanese, Korean, emoji
  if (character.size() == 2) return 0.66;
  const char c = character[0];
  if (std::string_view("iljI.,:;'|! ()[]ft").find(c) != std::string_view::npos) return 0.37;
  if (std::string_view("mwMW@%").find(c) != std::string_view::npos) return 0.95;
  return c >= 'A' && c <= 'Z' ? 0.71 : 0.61;
}

void pop_character(std::string& text) {
  bool continues = true;
  while (continues && !text.empty()) {
    continues = (static_cast<uint8_t>(text.back()) & 0xc0) == 0x80;
    text.pop_back();
  }
}

std::vector<std::string_view> split_words(std::string_view text) {
  std::vector<std::string_view> words;
  while (!text.empty()) {
    const size_t end = text.find_first_of(" \t\r\n");
    if (end != 0) words.push_back(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  return words;
}

/// As much of the front of `text` as fits; at least one character.
std::string_view fitting_front(std::string_view text, double width, double font_size) {
  size_t size = 0;
  double used = 0;
  while (size < text.size()) {
    const auto character = text.substr(size, character_bytes(text[size]));
    used += character_width(character) * font_size;
    if (used > width && size > 0) break;
    size += character.size();
  }
  return text.substr(0, size);
}

}  // namespace

std::string escape_xml(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&apos;";
        break;
      default:
        if (static_cast<uint8_t>(c) >= 0x20) out += c;
    }
  }
  return out;
}

std::string short_number(double value) {
  const std::string plain = fmt::format("{:.4g}", value);
  if (value == 0 || std::abs(value) >= 0.01) return plain;
  std::string scientific = fmt::format("{:.2e}", value);  // "1.50e-05"
  const size_t e = scientific.find('e');
  std::string digits = scientific.substr(0, e), exponent = scientific.substr(e + 2);
  while (digits.back() == '0' || digits.back() == '.') {
    const bool point = digits.back() == '.';
    digits.pop_back();
    if (point) break;
  }
  return fmt::format("{}e-{}", digits, std::stoi(exponent));
}

double text_width(const std::string& text, double font_size) {
  double width = 0;
  for (size_t i = 0; i < text.size();) {
    const auto character = std::string_view(text).substr(i, character_bytes(text[i]));
    width += character_width(character) * font_size;
    i += character.size();
  }
  return width;
}

std::vector<std::string> wrap_text(const std::string& text, double width, double font_size, int max_lines) {
  std::vector<std::string> lines;
  std::string current;
  for (std::string_view word : split_words(text)) {
    while (!word.empty()) {
      const std::string longer = current.empty() ? std::string(word) : current + " " + std::string(word);
      if (text_width(longer, font_size) <= width) {
        current = longer;
        break;
      }
      if (!current.empty()) {
        lines.push_back(std::exchange(current, ""));
        continue;
      }
      const auto front = fitting_front(word, width, font_size);  // a word longer than a line
      lines.emplace_back(front);
      word.remove_prefix(front.size());
    }
  }
  if (!current.empty()) lines.push_back(current);
  if (lines.size() <= static_cast<size_t>(max_lines)) return lines;

  lines.resize(max_lines);
  std::string& last = lines.back();
  const std::string dots = "...";
  while (!last.empty() && text_width(last + dots, font_size) > width) pop_character(last);
  last += dots;
  return lines;
}

}  // namespace lorashard
