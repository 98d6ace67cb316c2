#include "trainer/metrics.h"

#include <fcntl.h>
#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "dist/log.h"
#include "trainer/tensorboard.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;

/// The shortest text that reads back as the same double; JSON has no word for what is not finite.
std::string number(double value) { return std::isfinite(value) ? fmt::format("{}", value) : "null"; }

std::string json_line(const StepMetrics& m) {
  const std::string val_loss = m.val_loss ? fmt::format("\"val_loss\": {}, ", number(*m.val_loss)) : "";
  return fmt::format(
      "{{\"global_step\": {}, \"epoch\": {}, \"loss\": {}, {}\"lr\": {}, \"grad_norm\": {}, \"skipped\": {}, "
      "\"loss_scale\": {}, \"peak_device_memory_bytes\": {}, "
      "\"step_ms\": {}, "
      "\"images_per_second\": {}, \"world_size\": {}, \"data_wait_ms\": {}, \"checkpoint_wait_ms\": {}, "
      "\"checkpoint_snapshot_ms\": {}, \"wall_s\": {}}}\n",
      m.global_step, number(m.epoch), number(m.loss), val_loss, number(m.lr), number(m.grad_norm), m.skipped,
      number(m.loss_scale), m.peak_device_memory_bytes, number(m.step_ms), number(m.images_per_second), m.world_size,
      number(m.data_wait_ms), number(m.checkpoint_wait_ms), number(m.checkpoint_snapshot_ms), number(m.wall_s));
}

bool belongs_before(std::string_view line, int64_t first_step) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return false;
  const auto step = json.find("global_step");
  return step != json.end() && step->is_number_integer() && step->get<int64_t>() <= first_step;
}

/// Leaves the whole lines of steps up to `first_step`. Always a new file by one rename: the start before may live, cut off, with the old
/// one open.
void cut_after(const fs::path& file, int64_t first_step) {
  if (!fs::exists(file)) return;
  const std::string text = read_file(file, uint64_t{1} << 40);
  std::string kept;
  for (size_t begin = 0, end; (end = text.find('\n', begin)) != std::string::npos; begin = end + 1) {
    const std::string_view line = std::string_view(text).substr(begin, end + 1 - begin);
    if (belongs_before(line, first_step)) kept += line;
  }
  write_durably(file, kept);
}

std::string duration(double seconds) {
  const auto s = int64_t(std::max(0.0, seconds) + 0.5);
  if (s >= 86400) return fmt::format("{} d {:02d} h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{} h {:02d} min", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{} min {:02d} s", s / 60, s % 60);
  return fmt::format("{} s", s);
}

}  // namespace

struct Metrics::Impl {
  ~Impl() {
    if (descriptor >= 0) ::close(descriptor);
  }

  void report(const StepMetrics& m) {
    for (const auto& [tag, value] : {std::pair{"train/loss", m.loss},
                                     {"train/lr", m.lr},
                                     {"train/grad_norm", m.grad_norm},
                                     {"train/images_per_second", m.images_per_second},
                                     {"train/data_wait_ms", m.data_wait_ms}}) {
      if (std::isfinite(value)) events->scalar(tag, m.global_step, value);
    }
    if (m.val_loss && std::isfinite(*m.val_loss)) events->scalar("val/loss", m.global_step, *m.val_loss);
  }

  void show(const StepMetrics& m) {
    // Recent steps count most: the first ones are slower, and checkpoints and validation are in wall_s too.
    const double seconds = m.wall_s - last_wall_s;
    last_wall_s = m.wall_s;
    seconds_per_step = seconds_per_step ? 0.95 * *seconds_per_step + 0.05 * seconds : seconds;
    const int64_t left = std::max<int64_t>(0, max_train_steps - m.global_step);
    log::status(fmt::format("step {}/{}  loss {:.4f}  lr {:.3g}  grad_norm {:.3g}  {:.3g} img/s  ETA {}{}",
                            m.global_step, max_train_steps, m.loss, m.lr, m.grad_norm, m.images_per_second,
                            duration(double(left) * *seconds_per_step), m.skipped ? "  (update skipped)" : ""));
  }

  fs::path file;
  int descriptor = -1;
  std::string unwritten;  // lines that found no room: they come with the next one
  int64_t max_train_steps = 0;
  std::unique_ptr<EventFile> events;
  double last_wall_s = 0;
  std::optional<double> seconds_per_step;
};

Metrics::Metrics(const fs::path& output_dir, const std::vector<std::string>& report_to, const std::string& logging_dir,
                 int64_t first_step, int64_t max_train_steps)
    : impl_(std::make_unique<Impl>()) {
  impl_->file = output_dir / "metrics.jsonl";
  impl_->max_train_steps = max_train_steps;
  for (const std::string& target : report_to) {
    if (target != "tensorboard") {
      throw Error(ErrorKind::usage, fmt::format("report_to '{}': expected \"tensorboard\" or nothing", target));
    }
  }
  cut_after(impl_->file, first_step);
  impl_->descriptor = ::open(impl_->file.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (impl_->descriptor < 0) throw errno_error(fmt::format("opening '{}'", impl_->file.string()));
  if (report_to.empty()) return;
  impl_->events = std::make_unique<EventFile>(output_dir / logging_dir);
  impl_->events->restart(first_step + 1);
}

Metrics::~Metrics() { log::status(""); }

void Metrics::write(const StepMetrics& metrics) {
  impl_->unwritten += json_line(metrics);
  append_whole(impl_->descriptor, impl_->unwritten, impl_->file);
  impl_->unwritten.clear();
  if (impl_->events) impl_->report(metrics);
  impl_->show(metrics);
}

void Metrics::picture(const std::string& tag, int64_t step, const std::string& png) {
  if (!impl_->events) return;
  LORASHARD_CHECK(png.size() > 24, "a PNG of {} bytes", png.size());
  const auto side = [&](size_t at) {  // of the header, which every PNG begins with: big-endian width at 16, height at 20
    int64_t value = 0;
    for (size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(png[at + i]);
    return value;
  };
  impl_->events->image(tag, step, side(20), side(16), png);
}

void Metrics::flush() {
  if (::fdatasync(impl_->descriptor) != 0) throw errno_error(fmt::format("flushing '{}'", impl_->file.string()));
  if (impl_->events) impl_->events->flush();
}

}  // namespace lorashard
