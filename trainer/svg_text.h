// Text in a drawing: SVG knows no line breaks, so widths are estimated here and long captions are wrapped by hand.
#pragma once
#include <string>
#include <vector>

namespace lorashard {

/// UTF-8 text with XML's special characters escaped and what XML can't hold (control characters) left out.
std::string escape_xml(const std::string& text);

/// "0", "0.25", "1e-4": as few characters as say it.
std::string short_number(double value);

/// About how wide `text` is in a sans-serif face of `font_size`; wide rather than narrow.
double text_width(const std::string& text, double font_size);

/// `text` in at most `max_lines` lines of `width`, broken between words where possible; "..." ends what had to be cut.
std::vector<std::string> wrap_text(const std::string& text, double width, double font_size, int max_lines);

}  // namespace lorashard
