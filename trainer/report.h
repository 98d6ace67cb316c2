// What a run was, at a glance: report.png with the pictures it trained on, its loss and its learning rate, from the
// files of the run directory alone. `lorashard report` calls it; a run that is still going can be reported on too.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "data/image.h"

namespace lorashard {

/// One line of metrics.jsonl, as far as the report wants it. NaN where the line has no number.
struct RecordedStep {
  int64_t global_step = 0;
  double loss = 0, lr = 0, images_per_second = 0, wall_s = 0;
  bool skipped = false;
  int64_t world_size = 0;  ///< 0: not recorded
  double data_wait_ms = 0;
  int64_t peak_device_memory_bytes = 0;
};

/// Reads metrics.jsonl. A last line that was cut while being written is left out; Error(bad_data) names the line of any
/// other fault, Error(usage) a file that isn't there.
std::vector<RecordedStep> read_metrics(const std::filesystem::path& path);

/// The value in the middle, the larger of two; NaN values left out, NaN where none is left.
double median(std::vector<double> values);

/// Mean of the values of the last `window` positions up to each, NaN values left out; NaN where none is left.
std::vector<double> running_mean(const std::vector<double>& values, int64_t window);

struct RunSummary {
  std::string name;      ///< of the run directory
  std::string settings;  ///< base model, rank, resolution, ... in one line
  int64_t steps = 0, max_train_steps = 0, skipped_steps = 0;
  double last_loss = 0;                  ///< of the last step
  double final_loss = 0;                 ///< mean of the last `smoothing_steps` steps
  int64_t smoothing_steps = 1;           ///< window of the smoothed curve: 1/10 of the run
  double images_per_second = 0;          ///< median over the steps
  double wall_s = 0;                     ///< of all process groups of the run together
  int64_t min_ranks = 0, max_ranks = 0;  ///< over the run; 0: not recorded
  int64_t num_samples = 0;               ///< rows of the pack it draws from; 0: not found
};

RunSummary summarise(const std::string& name, const std::vector<RecordedStep>& steps);

struct ReportPicture {
  Image image;  ///< as trained on: resized, cropped, flipped
  std::string caption;
};

/// The figure as an SVG of kFigureWidth x kFigureHeight. `note` stands where the pictures would be when there are none.
std::string draw_report(const RunSummary& summary, const std::vector<RecordedStep>& steps,
                        const std::vector<ReportPicture>& pictures, const std::string& note);

inline constexpr int kFigureWidth = 1200, kFigureHeight = 758;

/// Writes RUN_DIR/report.png (or `out`) and returns the summary. Throws Error(usage) when `run_dir` is no run
/// directory.
RunSummary write_report(const std::filesystem::path& run_dir, const std::filesystem::path& out);

}  // namespace lorashard
