// lorashard report: a run directory in one picture.
#include <cmath>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#include "dist/log.h"
#include "launch/commands.h"
#include "trainer/report.h"

namespace lorashard {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const RunSummary& summary, const std::filesystem::path& out) {
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(); };
  return {{"run", summary.name},
          {"report", out.string()},
          {"steps", summary.steps},
          {"max_train_steps", summary.max_train_steps},
          {"skipped_steps", summary.skipped_steps},
          {"last_loss", number(summary.last_loss)},
          {"final_loss", number(summary.final_loss)},
          {"final_loss_is_the_mean_of_steps", summary.smoothing_steps},
          {"images_per_second", number(summary.images_per_second)},
          {"wall_s", number(summary.wall_s)},
          {"ranks", summary.max_ranks > 0 ? Json(summary.max_ranks) : Json()},
          {"num_samples", summary.num_samples > 0 ? Json(summary.num_samples) : Json()}};
}

void report(const std::filesystem::path& run_dir, std::filesystem::path out, bool json) {
  if (out.empty()) out = run_dir / "report.png";
  const RunSummary summary = write_report(run_dir, out);
  if (json) {
    std::cout << to_json(summary, out).dump(2) << '\n';
  } else {
    log::info("'{}': step {} of {}, loss {:.4f} (mean of the last {}), {:.2f} images/s; drawn in '{}'", summary.name,
              summary.steps, summary.max_train_steps, summary.final_loss, summary.smoothing_steps,
              summary.images_per_second, out.string());
  }
}

}  // namespace

void add_report_command(CLI::App& app) {
  struct Options {
    std::string run_dir, out;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("report", "draw a run: its pictures, its loss, its learning rate");
  command->add_option("run_dir", options->run_dir, "output_dir of a run, finished or not")->required();
  command->add_option("--out", options->out, "the PNG to write [RUN_DIR/report.png]");
  command->add_flag("--json", options->json, "a summary as JSON on stdout");
  command->callback([options] { report(options->run_dir, options->out, options->json); });
}

}  // namespace lorashard
