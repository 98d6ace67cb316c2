// What a run says of itself: metrics.jsonl (one JSON line a step), TensorBoard event files, the progress line. Rank 0 writes.
#pragma once
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lorashard {

struct StepMetrics {
  int64_t global_step = 0;  ///< from 1
  double epoch = 0;         ///< images seen / images in the pack
  double loss = 0, lr = 0, grad_norm = 0;
  std::optional<double> val_loss;        ///< on the pictures that are held out, of steps that have one
  bool skipped = false;
  double loss_scale = 1;                 ///< that the step's gradients were made with
  double step_ms = 0, data_wait_ms = 0;  ///< of this rank
  double checkpoint_wait_ms = 0;         ///< a checkpoint was due while another was being written
  double checkpoint_snapshot_ms = 0;     ///< copying the state for a checkpoint
  double images_per_second = 0;          ///< of all ranks
  int world_size = 1;                    ///< ranks that shared the step
  int64_t peak_device_memory_bytes = 0;  ///< of LibTorch's tensors on this rank's GPU so far; 0 on a CPU
  double wall_s = 0;                     ///< monotonic, since this process group started
};

class Metrics {
 public:
  /// Cuts the lines of metrics.jsonl after `first_step` (a resume), opens the event file. `report_to` holds "tensorboard" or nothing.
  Metrics(const std::filesystem::path& output_dir, const std::vector<std::string>& report_to, const std::string& logging_dir,
          int64_t first_step, int64_t max_train_steps);
  ~Metrics();
  /// When there is no room for the whole line none of it stays, and it is written with the next. Throws Error(io).
  void write(const StepMetrics& metrics);
  /// A picture for TensorBoard, where it is reported to: a PNG file. Throws Error(io).
  void picture(const std::string& tag, int64_t step, const std::string& png);
  /// May be called while another thread is in write().
  void flush();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace lorashard
