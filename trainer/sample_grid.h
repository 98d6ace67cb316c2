// Generated pictures on one sheet that says at a glance what they are: title and settings above, a row of pictures for
// each prompt with the prompt under it. Drawn for validation (samples/step-000500.png) and `lorashard generate`.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/image.h"

namespace lorashard {

struct SampleRow {
  std::string prompt;
  std::vector<Image> pictures;      ///< of one size
  std::vector<std::string> labels;  ///< one a picture: "seed 7, #0"
};

struct SampleGrid {
  std::string title;                  ///< large: "step 500 of 1000"
  std::string origin;                 ///< beside it: the run, or the base
  std::vector<std::string> settings;  ///< one line: scheduler, steps, guidance, adapter and scale
  std::vector<SampleRow> rows;
};

/// The sheet. Pictures stand at their own size up to kMostTile pixels a side, small ones enlarged to kLeastTile.
Image draw_sample_grid(const SampleGrid& grid);

inline constexpr int64_t kLeastTile = 256, kMostTile = 512;

}  // namespace lorashard
