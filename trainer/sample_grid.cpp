#include "trainer/sample_grid.h"

#include <fmt/ranges.h>

#include <algorithm>

#include "data/image_resize.h"
#include "data/image_write.h"
#include "dist/error.h"
#include "trainer/svg_text.h"

namespace lorashard {
namespace {

constexpr const char* kInk = "#1d2433";
constexpr const char* kGrey = "#667085";
constexpr const char* kLine = "#d0d5dd";
constexpr double kMargin = 32, kGap = 12;
constexpr size_t kMostColumns = 5;  // a longer row goes on below
constexpr double kLeastWidth = 720;
constexpr int kPromptLines = 3;

struct Layout {
  double width = 0;
  double tile_width = 0, tile_height = 0;
  size_t columns = 0;
  double scale = 1;  // of all text: a sheet of large pictures is looked at from further away
};

std::string text(double x, double y, double size, const std::string& content, const char* colour,
                 const std::string& more = "") {
  return fmt::format("<text x='{:.1f}' y='{:.1f}' font-size='{:.1f}' fill='{}' {}>{}</text>\n", x, y, size, colour,
                     more, escape_xml(content));
}

Layout lay_out(const SampleGrid& grid) {
  Layout layout;
  size_t most = 1;
  for (const SampleRow& row : grid.rows) most = std::max(most, row.pictures.size());
  layout.columns = most <= kMostColumns ? most : 4;
  const Image& first = grid.rows.front().pictures.front();
  const auto longest = static_cast<double>(std::max(first.height, first.width));
  const double factor = std::clamp(longest, double{kLeastTile}, double{kMostTile}) / longest;
  layout.tile_width = static_cast<double>(first.width) * factor;
  layout.tile_height = static_cast<double>(first.height) * factor;
  const auto columns = static_cast<double>(layout.columns);
  layout.width = std::max(kLeastWidth, 2 * kMargin + columns * layout.tile_width + (columns - 1) * kGap);
  layout.scale = std::clamp(layout.width / 1100, 0.9, 1.8);
  return layout;
}

/// Title, origin beside it, the settings below; moves `y` past them.
std::string draw_heading(const SampleGrid& grid, const Layout& layout, double& y) {
  const double inner = layout.width - 2 * kMargin, large = 30 * layout.scale, small = 16 * layout.scale;
  y += large * 0.8;
  std::string svg = text(kMargin, y, large, grid.title, kInk, "font-weight='bold'");
  const double used = text_width(grid.title, large) * 1.1;
  if (const auto beside = wrap_text(grid.origin, inner - used - 24, small * 1.15, 1); !beside.empty())
    svg += text(layout.width - kMargin, y, small * 1.15, beside.front(), kInk, "text-anchor='end'");
  y += 8 * layout.scale;
  for (const std::string& line : wrap_text(fmt::format("{}", fmt::join(grid.settings, "  ·  ")), inner, small, 3)) {
    y += small * 1.35;
    svg += text(kMargin, y, small, line, kGrey);
  }
  y += 14 * layout.scale;
  return svg;
}

std::string draw_picture(const Image& image, const std::string& label, const Layout& layout, double x, double y) {
  // A large picture is made small here, with a good filter; a small one is enlarged without inventing anything.
  const bool shrinks = static_cast<double>(image.width) > layout.tile_width;
  const Image shown =
      shrinks ? resize(image, {static_cast<int64_t>(layout.tile_height), static_cast<int64_t>(layout.tile_width)},
                       Interpolation::lanczos)
              : image;
  const double size = 12 * layout.scale;
  return fmt::format(
             "<image x='{:.1f}' y='{:.1f}' width='{:.1f}' height='{:.1f}' xlink:href='{}' "
             "image-rendering='optimizeSpeed' preserveAspectRatio='none'/>\n",
             x, y, layout.tile_width, layout.tile_height, png_data_uri(shown)) +
         text(x, y + layout.tile_height + size * 1.3, size, label, kGrey);
}

/// Pictures, the label of each under it, the prompt under all; moves `y` past them.
std::string draw_row(const SampleRow& row, const Layout& layout, double& y) {
  std::string svg;
  const double label_height = 12 * layout.scale * 1.7, size = 19 * layout.scale;
  for (size_t i = 0; i < row.pictures.size(); ++i) {
    const size_t column = i % layout.columns;
    if (i > 0 && column == 0) y += layout.tile_height + label_height + kGap / 2;
    svg += draw_picture(row.pictures[i], i < row.labels.size() ? row.labels[i] : "", layout,
                        kMargin + static_cast<double>(column) * (layout.tile_width + kGap), y);
  }
  y += layout.tile_height + label_height;
  for (const std::string& line : wrap_text(row.prompt, layout.width - 2 * kMargin, size, kPromptLines)) {
    y += size * 1.25;
    svg += text(kMargin, y, size, line, kInk);
  }
  y += 16 * layout.scale;
  return svg;
}

}  // namespace

Image draw_sample_grid(const SampleGrid& grid) {
  LORASHARD_CHECK(!grid.rows.empty() && !grid.rows.front().pictures.empty(), "a sheet of no picture");
  const Layout layout = lay_out(grid);
  double y = kMargin;
  std::string body = draw_heading(grid, layout, y);
  for (const SampleRow& row : grid.rows) {
    body += fmt::format("<line x1='{0}' y1='{1:.1f}' x2='{2:.1f}' y2='{1:.1f}' stroke='{3}'/>\n", kMargin, y,
                        layout.width - kMargin, kLine);
    y += 16 * layout.scale;
    body += draw_row(row, layout, y);
  }
  return render_svg(
      fmt::format("<svg xmlns='http://www.w3.org/2000/svg' xmlns:xlink='http://www.w3.org/1999/xlink' width='{:.0f}' "
                  "height='{:.0f}' font-family=\"'DejaVu Sans', Arial, sans-serif\">\n{}</svg>\n",
                  layout.width, y + kMargin / 2, body));
}

}  // namespace lorashard
