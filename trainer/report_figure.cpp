// The drawing of report.png: one SVG, composed from left to right and top to bottom.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "data/image_resize.h"
#include "data/image_write.h"
#include "dist/error.h"
#include "trainer/report.h"
#include "trainer/svg_text.h"

namespace lorashard {
namespace {

constexpr const char* kInk = "#1d2433";
constexpr const char* kGrey = "#667085";
constexpr const char* kGridLine = "#e4e7ec";
constexpr const char* kRawLoss = "#9dbbe0";
constexpr const char* kSmoothLoss = "#1c5fb0";
constexpr const char* kLearningRate = "#b4611a";
constexpr const char* kSkipped = "#d92d20";

struct Frame {
  double x, y, width, height;
};
constexpr Frame kPictures{36, 128, 520, 612};
constexpr Frame kLoss{652, 134, 512, 376};
constexpr Frame kRate{652, 578, 512, 118};

std::string text(double x, double y, double size, const std::string& content, const std::string& colour = kInk,
                 const std::string& anchor = "start", const std::string& more = "") {
  return fmt::format("<text x='{:.1f}' y='{:.1f}' font-size='{:.1f}' fill='{}' text-anchor='{}' {}>{}</text>\n", x, y,
                     size, colour, anchor, more, escape_xml(content));
}

std::string line(double x1, double y1, double x2, double y2, const std::string& colour, double width = 1) {
  return fmt::format("<line x1='{:.2f}' y1='{:.2f}' x2='{:.2f}' y2='{:.2f}' stroke='{}' stroke-width='{}'/>\n", x1, y1,
                     x2, y2, colour, width);
}

/// Round numbers across [low, high], about `count` of them.
std::vector<double> ticks(double low, double high, int count, double smallest_step = 0) {
  const double rough = std::max((high - low) / count, 1e-300), power = std::pow(10, std::floor(std::log10(rough)));
  const double unit = rough / power;
  const double step = std::max((unit <= 1 ? 1 : unit <= 2 ? 2 : unit <= 5 ? 5 : 10) * power, smallest_step);
  std::vector<double> values;
  for (double i = std::ceil(low / step - 1e-9); i * step <= high + 1e-9 * step; ++i)
    values.push_back(i * step + 0.0);  // never -0
  return values;
}

struct Axes {
  Frame frame;
  double x_low, x_high, y_low, y_high;
  double x(double value) const { return frame.x + (value - x_low) / (x_high - x_low) * frame.width; }
  double y(double value) const { return frame.y + frame.height - (value - y_low) / (y_high - y_low) * frame.height; }
};

std::string draw_axes(const Axes& axes, const std::string& title, int num_y_ticks,
                      const std::function<std::string(double)>& y_label, bool x_labels) {
  const Frame& f = axes.frame;
  std::string svg = text(f.x - 44, f.y - 20, 14, title, kInk, "start", "font-weight='bold'");
  for (const double value : ticks(axes.y_low, axes.y_high, num_y_ticks)) {
    svg += line(f.x, axes.y(value), f.x + f.width, axes.y(value), kGridLine);
    svg += text(f.x - 8, axes.y(value) + 4, 12, y_label(value), kGrey, "end");
  }
  for (const double value : ticks(axes.x_low, axes.x_high, 6, 1)) {
    svg += line(axes.x(value), f.y + f.height, axes.x(value), f.y + f.height + 5, kGrey);
    if (x_labels) svg += text(axes.x(value), f.y + f.height + 20, 12, fmt::format("{:.0f}", value), kGrey, "middle");
  }
  return svg + line(f.x, f.y + f.height, f.x + f.width, f.y + f.height, kGrey);
}

/// A curve over the steps; a NaN interrupts it, a single point becomes a dot.
std::string draw_curve(const Axes& axes, const std::vector<RecordedStep>& steps, const std::vector<double>& values,
                       const std::string& colour, double width) {
  std::string svg, points;
  int num_points = 0;
  const auto finish = [&](size_t end) {
    if (num_points > 1) {
      svg += fmt::format("<polyline points='{}' fill='none' stroke='{}' stroke-width='{}' stroke-linejoin='round'/>\n",
                         points, colour, width);
    } else if (num_points == 1) {
      svg += fmt::format("<circle cx='{:.2f}' cy='{:.2f}' r='{}' fill='{}'/>\n",
                         axes.x(static_cast<double>(steps[end - 1].global_step)), axes.y(values[end - 1]), width + 1,
                         colour);
    }
    points.clear();
    num_points = 0;
  };
  // Of thousands of steps that share a column of pixels, the lowest and the highest say all.
  const size_t bin = std::max<size_t>(1, values.size() / 1500);
  for (size_t i = 0; i < values.size(); ++i) {
    if (std::isnan(values[i])) {
      finish(i);
      continue;
    }
    if (bin > 2) {
      const auto [lowest, highest] =
          std::minmax_element(values.begin() + static_cast<int64_t>(i / bin * bin),
                              values.begin() + static_cast<int64_t>(std::min(i / bin * bin + bin, values.size())));
      if (values[i] != *lowest && values[i] != *highest) continue;
    }
    points += fmt::format("{:.2f},{:.2f} ", axes.x(static_cast<double>(steps[i].global_step)), axes.y(values[i]));
    ++num_points;
  }
  finish(values.size());
  return svg;
}

/// Of a long run without the outermost fortieth on either side, so that one spike doesn't flatten the rest.
std::pair<double, double> usual_range(std::vector<double> values, const std::vector<double>& always_inside) {
  std::erase_if(values, [](double value) { return !std::isfinite(value); });
  if (values.empty()) return {0, 1};
  std::ranges::sort(values);
  const size_t cut = values.size() < 200 ? 0 : values.size() / 40;
  double low = values[cut], high = values[values.size() - 1 - cut];
  for (const double value : always_inside) {
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const double margin = high > low ? (high - low) * 0.06 : std::max(std::abs(high) * 0.1, 1e-12);
  return {low >= 0 ? std::max(0.0, low - margin) : low - margin, high + margin};
}

std::pair<double, double> step_range(const std::vector<RecordedStep>& steps) {
  const auto first = static_cast<double>(steps.front().global_step),
             last = static_cast<double>(steps.back().global_step);
  return first < last ? std::pair{first, last} : std::pair{first - 1, first + 1};
}

std::string draw_loss(const RunSummary& summary, const std::vector<RecordedStep>& steps) {
  std::vector<double> raw;
  for (const auto& step : steps) raw.push_back(step.loss);
  auto smooth = running_mean(raw, summary.smoothing_steps);
  // The first means are of a few steps only: as jumpy as the steps, and the eye takes them for a trend.
  std::fill_n(smooth.begin(), summary.smoothing_steps / 3, std::nan(""));
  const auto [low, high] = usual_range(raw, smooth);
  const auto [first, last] = step_range(steps);
  const Axes axes{kLoss, first, last, low, high};
  const Frame& f = kLoss;
  const int digits = high - low < 0.02 ? 4 : high - low < 0.2 ? 3 : 2;
  std::string svg = draw_axes(
      axes, "Training loss (MSE)", 6, [&](double value) { return fmt::format("{:.{}f}", value, digits); }, true);
  svg += fmt::format(
      "<clipPath id='loss'><rect x='{}' y='{}' width='{}' height='{}'/></clipPath><g clip-path='url(#loss)'>\n", f.x,
      f.y - 2, f.width + 3, f.height + 4);
  const bool smoothed = summary.smoothing_steps > 1;
  svg += draw_curve(axes, steps, raw, smoothed ? kRawLoss : kSmoothLoss,
                    !smoothed            ? 2
                    : steps.size() > 400 ? 0.7
                                         : 1.1);
  for (const auto& step : steps) {
    const double x = axes.x(static_cast<double>(step.global_step));
    if (step.skipped) svg += line(x, f.y + f.height - 10, x, f.y + f.height, kSkipped, 1.5);
  }
  if (smoothed) svg += draw_curve(axes, steps, smooth, kSmoothLoss, 2.4);
  svg += "</g>\n";

  double x = f.x + f.width;
  const auto entry = [&](const std::string& label, const char* colour, double width) {
    x -= text_width(label, 12);
    svg += text(x, f.y - 20, 12, label, kGrey);
    svg += line(x - 26, f.y - 24, x - 6, f.y - 24, colour, width);
    x -= 40;
  };
  if (summary.skipped_steps > 0) entry("skipped", kSkipped, 2);
  if (smoothed) entry(fmt::format("mean of {}", summary.smoothing_steps), kSmoothLoss, 2.4);
  entry("each step", smoothed ? kRawLoss : kSmoothLoss, smoothed ? 1.2 : 2);
  return svg;
}

std::string draw_learning_rate(const std::vector<RecordedStep>& steps) {
  std::vector<double> rates;
  double highest = 0;
  for (const auto& step : steps) {
    rates.push_back(step.lr);
    if (std::isfinite(step.lr)) highest = std::max(highest, step.lr);
  }
  const auto [first, last] = step_range(steps);
  const Axes axes{kRate, first, last, 0, highest > 0 ? highest * 1.12 : 1};
  return draw_axes(axes, "Learning rate", 3, short_number, true) + draw_curve(axes, steps, rates, kLearningRate, 2) +
         text(kRate.x + kRate.width / 2, kRate.y + kRate.height + 38, 12, "optimizer step", kGrey, "middle");
}

std::string draw_pictures(const RunSummary& summary, const std::vector<ReportPicture>& pictures,
                          const std::string& note) {
  if (pictures.empty()) {
    std::string svg;
    double y = kPictures.y + 40;
    for (const auto& part : wrap_text(note, kPictures.width - 20, 13, 6)) {
      svg += text(kPictures.x, y, 13, part, kGrey);
      y += 20;
    }
    return svg;
  }
  const size_t columns = pictures.size() > 9 ? 4 : pictures.size() > 4 ? 3 : 2;
  const double gap = 12,
               tile = (kPictures.width - gap * static_cast<double>(columns - 1)) / static_cast<double>(columns),
               row_height = tile + 33;
  const auto pixels = static_cast<int64_t>(tile * 2);
  std::string svg =
      text(kPictures.x, kLoss.y - 20, 14,
           fmt::format("The first {} of {} pictures, as trained on", pictures.size(), summary.num_samples), kInk,
           "start", "font-weight='bold'");
  for (size_t i = 0; i < pictures.size(); ++i) {
    const double x = kPictures.x + static_cast<double>(i % columns) * (tile + gap);
    const double y = kPictures.y + static_cast<double>(i / columns) * row_height;
    // A picture of another shape than a square is in the middle of its tile.
    const Image& picture = pictures[i].image;
    const int64_t longest = std::max(picture.height, picture.width);
    const ImageSize size{std::max<int64_t>(1, pixels * picture.height / longest),
                         std::max<int64_t>(1, pixels * picture.width / longest)};
    const double width = tile * static_cast<double>(picture.width) / static_cast<double>(longest);
    const double height = tile * static_cast<double>(picture.height) / static_cast<double>(longest);
    const Image small = resize(picture, size, Interpolation::lanczos);
    svg += fmt::format("<image x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}' xlink:href='{}'/>\n",
                       x + (tile - width) / 2, y + (tile - height) / 2, width, height, png_data_uri(small));
    svg += fmt::format("<rect x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}' fill='none' stroke='{}'/>\n", x, y,
                       tile, tile, kGridLine);
    double baseline = y + tile + 12;
    for (const auto& part : wrap_text(pictures[i].caption, tile, 10, 2)) {
      svg += text(x, baseline, 10, part, kGrey);
      baseline += 11.5;
    }
  }
  return svg;
}

std::string duration(double seconds) {
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{:.1f} s", seconds);
  if (whole < 600) return fmt::format("{} min {} s", whole / 60, whole % 60);
  if (whole < 3600) return fmt::format("{} min", whole / 60);
  return fmt::format("{} h {} min", whole / 3600, whole % 3600 / 60);
}

std::string draw_title(const RunSummary& summary) {
  std::vector<std::string> facts;
  const bool done = summary.max_train_steps == 0 || summary.steps >= summary.max_train_steps;
  facts.push_back(done ? fmt::format("{} step{}", summary.steps, summary.steps == 1 ? "" : "s")
                       : fmt::format("step {} of {}", summary.steps, summary.max_train_steps));
  if (std::isfinite(summary.final_loss)) facts.push_back(fmt::format("loss {:.4f}", summary.final_loss));
  if (std::isfinite(summary.images_per_second))
    facts.push_back(fmt::format("{:.3g} images/s", summary.images_per_second));
  if (summary.max_ranks > 0) {
    facts.push_back(summary.min_ranks == summary.max_ranks
                        ? fmt::format("{} rank{}", summary.max_ranks, summary.max_ranks == 1 ? "" : "s")
                        : fmt::format("{} to {} ranks", summary.min_ranks, summary.max_ranks));
  }
  facts.push_back(duration(summary.wall_s));
  if (summary.skipped_steps > 0) facts.push_back(fmt::format("{} skipped", summary.skipped_steps));
  const double right = kLoss.x + kLoss.width;
  return text(kPictures.x, 46, 26, summary.name, kInk, "start", "font-weight='bold'") +
         text(kPictures.x, 74, 14, summary.settings, kGrey) +
         text(right, 46, 16, fmt::format("{}", fmt::join(facts, "  ·  ")), kInk, "end") +
         line(kPictures.x, 90, right, 90, kGridLine, 1);
}

}  // namespace

std::string draw_report(const RunSummary& summary, const std::vector<RecordedStep>& steps,
                        const std::vector<ReportPicture>& pictures, const std::string& note) {
  LORASHARD_CHECK(!steps.empty(), "a figure of no step");
  return fmt::format(
             "<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' width='{}' "
             "height='{}' "
             "font-family=\"'DejaVu Sans', Arial, sans-serif\">\n",
             kFigureWidth, kFigureHeight) +
         draw_title(summary) + draw_pictures(summary, pictures, note) + draw_loss(summary, steps) +
         draw_learning_rate(steps) + "</svg>\n";
}

}  // namespace lorashard
