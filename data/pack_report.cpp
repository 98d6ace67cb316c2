// What a pack was made of, and what was left out of it and why, as the log has it.
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "data/pack.h"
#include "dist/log.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

constexpr size_t kShownPerReason = 20;

/// The pictures left out, by reason: every name while they are few.
void log_left_out(const std::vector<LeftOut>& left_out) {
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const LeftOut& item : left_out) by_reason[item.reason].push_back(item.file_name);
  for (const auto& [reason, names] : by_reason) {
    log::info("left out {}: {}", names.size(), reason);
    for (size_t i = 0; i < std::min(names.size(), kShownPerReason); ++i) log::info("  {}", names[i]);
    if (names.size() > kShownPerReason) log::info("  and {} more; lorashard pack --json names all", names.size() - kShownPerReason);
  }
}

}  // namespace

void log_report(const PackReport& report, const fs::path& out) {
  log_left_out(report.left_out);
  if (report.num_other_files > 0) log::info("{} other files are no pictures", report.num_other_files);
  if (report.num_longer_caption_files > 0)
    log::info("{} .txt files have more lines: only the first that isn't blank is the caption",
              report.num_longer_caption_files);
  log::info("packed {} pictures ({} with a caption, from {}) into '{}': {} shards, {:.1f} MB; {} left out",
            report.num_samples, report.num_captions, to_string(report.caption_source), out.string(), report.num_shards,
            static_cast<double>(report.bytes) / 1e6, report.left_out.size());
}

}  // namespace lorashard
