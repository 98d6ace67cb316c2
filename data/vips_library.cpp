#include "data/vips_library.h"

#include <vips/vips.h>

#include <string_view>

#include "dist/error.h"

namespace lorashard {
namespace {

void keep_warning(const gchar*, GLogLevelFlags, const gchar* text, gpointer) {
  constexpr size_t kEnough = 500;
  std::string& kept = vips_warnings();
  if (kept.size() < kEnough && !std::string_view(text).starts_with("error in tile")) kept += std::string(text) + "\n";
}

}  // namespace

void start_vips() {
  static const bool ready = [] {
    // libpng and libjpeg also warn about harmless things (colour profiles, odd markers), and nothing of ours prints.
    g_log_set_handler("VIPS", static_cast<GLogLevelFlags>(G_LOG_LEVEL_MASK | G_LOG_FLAG_FATAL | G_LOG_FLAG_RECURSION),
                      keep_warning, nullptr);
    if (VIPS_INIT("lorashard") != 0)
      throw Error(ErrorKind::internal, fmt::format("starting libvips: {}", vips_error_buffer()));
    vips_concurrency_set(1);  // threads are ours: one picture each
    vips_cache_set_max(0);    // its cache is keyed by the buffer's address, which is reused
    vips_block_untrusted_set(TRUE);
    return true;
  }();
  (void)ready;
}

std::string& vips_warnings() {
  thread_local std::string text;
  return text;
}

}  // namespace lorashard
