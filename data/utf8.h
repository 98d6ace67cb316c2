// Is this text UTF-8? Captions and file names are held to it wherever they come in.
#pragma once
#include <string_view>

namespace lorashard {

/// Well-formed by Unicode's table 3-7: no overlong forms, no surrogates, nothing above U+10FFFF.
bool is_valid_utf8(std::string_view text);

}  // namespace lorashard
