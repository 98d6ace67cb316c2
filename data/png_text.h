// Words inside a PNG: the text chunks in which programs that make pictures say how (key "parameters" by custom). Called
// by whoever writes a generated picture. Thread-safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace lorashard {

/// `png` with a text chunk in front of its pixels: tEXt where `text` is ASCII, iTXt (UTF-8) otherwise (PNG 1.2,
/// sections 4.2.3.1 and 4.2.3.3). `keyword`: 1 to 79 printable ASCII characters.
std::vector<uint8_t> add_png_text(const std::vector<uint8_t>& png, const std::string& keyword, const std::string& text);

/// The text of the chunk that add_png_text() wrote under `keyword`, "" where there is none.
std::string png_text(const std::vector<uint8_t>& png, const std::string& keyword);

}  // namespace lorashard
