// checkpoint_stall_probe FOLDER PARAMETERS COUNT: what checkpoints of an adapter of so many parameters cost the training.
// Writes COUNT of them as the trainer does. First with nothing in flight, each begun when the one before is on disk: a
// step stands still for the snapshot alone. Then each due at once: it waits for the one in flight, and none is dropped.
// Prints one line of JSON: bytes, milliseconds (median and largest).
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>
#include <vector>

#include "trainer/checkpoint.h"
#include "trainer/checkpoint_writer.h"

namespace {

using Clock = std::chrono::steady_clock;
using lorashard::CheckpointWriter;
using lorashard::checkpoint_bytes;
using lorashard::read_checkpoint;
using lorashard::remove_old_checkpoints;
using lorashard::write_checkpoint;

double ms_since(Clock::time_point start) { return std::chrono::duration<double, std::milli>(Clock::now() - start).count(); }

std::string median_and_most(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return fmt::format("[{:.3f}, {:.3f}]", values[values.size() / 2], values.back());
}

void measure(const std::filesystem::path& folder, int64_t parameters, int64_t count) {
  lorashard::TrainingState state;
  state.recipe = "seed = 1\n";
  state.parameters = at::rand({parameters}, at::kFloat);
  state.parts.tensors["optimizer/exp_avg"] = at::rand({parameters}, at::kFloat);
  state.parts.tensors["optimizer/exp_avg_sq"] = at::rand({parameters}, at::kFloat);
  std::vector<double> written;  // the writer's thread alone, while it lives
  uint64_t bytes = 0;
  {
    CheckpointWriter writer(state, false, [&](const lorashard::TrainingState& copy) {
      const auto start = Clock::now();
      const auto made = write_checkpoint(folder, copy, {{"adapter.weight", copy.parameters}}, {});
      remove_old_checkpoints(folder, 0, made);
      written.push_back(ms_since(start));
      bytes = checkpoint_bytes(made);
    });
    std::vector<double> stalled, snapshots, waits;
    for (int64_t i = 0; i < 2 * count; ++i) {
      const bool in_flight = i >= count;
      state.global_step = i + 1;
      state.parameters.add_(1);  // an update between two checkpoints
      const auto start = Clock::now();
      const auto timing = writer.snapshot(state);
      writer.start();
      if (in_flight) {
        waits.push_back(timing.wait_ms);
      } else {
        stalled.push_back(ms_since(start));
        snapshots.push_back(timing.snapshot_ms);
        writer.finish();
      }
    }
    writer.finish();
    fmt::print(R"({{"parameters": {}, "bytes": {}, "step_stalled_ms": {}, "snapshot_ms": {}, "wait_in_flight_ms": {}, )", parameters,
               bytes, median_and_most(stalled), median_and_most(snapshots), median_and_most(waits));
  }
  int64_t there = 0;
  for (int64_t step = 1; step <= 2 * count; ++step) {
    there += read_checkpoint(folder / fmt::format("checkpoint-{}", step)).global_step == step ? 1 : 0;
  }
  fmt::print(R"("write_ms": {}, "due": {}, "written": {}}})" "\n", median_and_most(written), 2 * count, there);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  at::set_num_threads(1);
  std::filesystem::create_directories(argv[1]);
  try {
    measure(argv[1], std::atoll(argv[2]), std::atoll(argv[3]));
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
