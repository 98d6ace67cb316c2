// Starting libvips, once, the way reading and writing pictures here need it. Thread-safe.
#pragma once
#include <string>

namespace lorashard {

/// Throws Error(internal) when libvips doesn't start. Cheap after the first call.
void start_vips();

/// What libvips's loaders said in this thread since it was last cleared: libpng gives its reasons as warnings. At most 500 bytes or so.
std::string& vips_warnings();

}  // namespace lorashard
