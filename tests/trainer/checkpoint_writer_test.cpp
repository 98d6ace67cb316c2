#include "trainer/checkpoint_writer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <thread>
#include <vector>

#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

TrainingState state_of(int64_t step, int64_t num_parameters = 100) {
  TrainingState state;
  state.global_step = step;
  state.updates = step - 1;
  state.skipped_in_a_row = step % 3;
  state.parameters = at::full({num_parameters}, static_cast<double>(step), at::kFloat);
  state.parts.tensors["optimizer/exp_avg"] = at::full({num_parameters}, step * 0.5, at::kFloat);
  state.parts.tensors["optimizer/exp_avg_sq"] = at::full({num_parameters}, step * 0.25, at::kFloat);
  state.parts.scalars["loss_scale/scale"] = static_cast<double>(step);
  state.recipe = "seed = 1\n";
  return state;
}

Error full_disk(const std::string& what) { return Error(ErrorKind::io, what, "", ENOSPC); }

Error error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorKind::internal, "");
}

TEST(CheckpointWriter, TheCopyIsOfTheMomentOfTheSnapshot) {
  TrainingState live = state_of(5);
  std::promise<void> go;
  std::shared_future<void> gone = go.get_future().share();
  TrainingState written;
  {
    CheckpointWriter writer(live, false, [&](const TrainingState& copy) {
      gone.wait();
      written = copy;
      written.parameters = copy.parameters.clone();
    });
    writer.snapshot(live);
    writer.start();
    live.parameters.add_(1);  // training goes on
    live.parts.tensors["optimizer/exp_avg"].add_(1);
    live.parts.scalars["loss_scale/scale"] = 0.0;
    live.global_step = 6;
    go.set_value();
    writer.finish();
  }
  EXPECT_EQ(written.global_step, 5);
  EXPECT_EQ(written.updates, 4);
  EXPECT_EQ(written.skipped_in_a_row, 2);
  EXPECT_EQ(written.recipe, "seed = 1\n");
  EXPECT_TRUE(at::equal(written.parameters, state_of(5).parameters));
  for (const auto& [name, tensor] : state_of(5).parts.tensors)
    EXPECT_TRUE(at::equal(written.parts.tensors.at(name), tensor)) << name;
  EXPECT_EQ(written.parts.scalars, state_of(5).parts.scalars);
}

TEST(CheckpointWriter, OneThatIsDueWhileAnotherIsWrittenWaitsAndNoneIsDropped) {
  std::vector<int64_t> written;
  std::atomic<int> at_once = 0;
  int64_t waits = 0;
  CheckpointWriter writer(state_of(0), false, [&](const TrainingState& copy) {
    EXPECT_EQ(++at_once, 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    EXPECT_TRUE(at::equal(copy.parameters, state_of(copy.global_step).parameters));
    written.push_back(copy.global_step);
    --at_once;
  });
  for (int64_t step = 1; step <= 50; ++step) {
    waits += writer.snapshot(state_of(step)).wait_ms > 1;
    writer.start();
  }
  writer.finish();
  ASSERT_EQ(written.size(), 50u);
  EXPECT_TRUE(std::is_sorted(written.begin(), written.end()));
  EXPECT_GT(waits, 0) << "and the wait is reported";
}

TEST(CheckpointWriter, AfterAWriteThatEndsTheRunNoneIsWritten) {
  for (const bool continues : {false, true}) {
    std::vector<int64_t> written;
    CheckpointWriter writer(state_of(0), continues, [&](const TrainingState& copy) {
      if (copy.global_step == 2) throw Error(ErrorKind::io, "no", "", ENOSPC);
      written.push_back(copy.global_step);
    });
    for (int64_t step = 1; step <= 4; ++step) {
      writer.snapshot(state_of(step));
      writer.start();
    }
    if (continues) {
      writer.finish();
    } else {
      EXPECT_THROW(writer.finish(), Error);
    }
    EXPECT_EQ(written, continues ? (std::vector<int64_t>{1, 3, 4}) : (std::vector<int64_t>{1}));
  }
}

TEST(CheckpointWriter, TheTrainingThreadDoesNotWaitForTheWriting) {
  std::promise<void> go;
  CheckpointWriter writer(state_of(0), false, [&](const TrainingState&) { go.get_future().wait(); });
  writer.snapshot(state_of(1));
  writer.start();  // a writer on this thread would wait for ever
  EXPECT_FALSE(writer.failed());
  go.set_value();
  writer.finish();
}

TEST(CheckpointWriter, AnErrorIsSeenAtTheNextStepAndThrownOnce) {
  CheckpointWriter writer(state_of(0), false, [](const TrainingState& copy) {
    if (copy.global_step == 1) throw Error(ErrorKind::io, "the disk is gone", "buy another");
  });
  writer.snapshot(state_of(1));
  writer.start();
  while (!writer.failed()) std::this_thread::yield();
  const Error error = error_of([&] { writer.finish(); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(error.message(), "the disk is gone");
  EXPECT_EQ(error.hint(), "buy another");
  EXPECT_FALSE(writer.failed());
  writer.snapshot(state_of(2));
  writer.start();
  writer.finish();
}

TEST(CheckpointWriter, TheFirstOfSeveralErrorsIsTheOneThrown) {
  CheckpointWriter writer(state_of(0), false, [](const TrainingState& copy) {
    throw Error(ErrorKind::io, fmt::format("step {}", copy.global_step));
  });
  for (int64_t step = 1; step <= 3; ++step) {
    writer.snapshot(state_of(step));
    writer.start();
  }
  EXPECT_EQ(error_of([&] { writer.finish(); }).message(), "step 1");
}

TEST(CheckpointWriter, AFullDiskStopsOrNotAsTheRecipeSays) {
  const auto write = [](const TrainingState& copy) {
    if (copy.global_step == 1) throw full_disk("no room for step 1");
  };
  CheckpointWriter stopping(state_of(0), false, write);
  stopping.snapshot(state_of(1));
  stopping.start();
  EXPECT_TRUE(error_of([&] { stopping.finish(); }).is_disk_full());

  ::testing::internal::CaptureStderr();
  CheckpointWriter going_on(state_of(0), true, write);
  going_on.snapshot(state_of(1));
  going_on.start();
  going_on.finish();
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("no room for step 1"));
  // A stop on request promises a checkpoint.
  EXPECT_EQ(error_of([&] { going_on.finish(/*must_be_written=*/true); }).message(), "no room for step 1");
  going_on.snapshot(state_of(2));
  going_on.start();
  going_on.finish(/*must_be_written=*/true);
}

TEST(CheckpointWriter, OtherErrorsStopWhateverTheRecipeSaysOfFullDisks) {
  CheckpointWriter writer(state_of(0), true, [](const TrainingState& copy) {
    if (copy.global_step == 1) throw Error(ErrorKind::io, "input/output error", "", EIO);
    throw std::runtime_error("a surprise");
  });
  writer.snapshot(state_of(1));
  writer.start();
  EXPECT_EQ(error_of([&] { writer.finish(); }).message(), "input/output error");
  writer.snapshot(state_of(2));
  writer.start();
  const Error error = error_of([&] { writer.finish(); });
  EXPECT_EQ(error.kind(), ErrorKind::internal);
  EXPECT_THAT(error.message(), HasSubstr("a surprise"));
}

TEST(CheckpointWriter, ErrorsOfMetricsFollowTheSamePolicyAndAreSaidOnce) {
  const auto no_write = [](const TrainingState&) {};
  CheckpointWriter stopping(state_of(0), false, no_write);
  stopping.guard([] { throw full_disk("no room for metrics"); });
  EXPECT_TRUE(stopping.failed());
  EXPECT_EQ(error_of([&] { stopping.finish(); }).message(), "no room for metrics");

  ::testing::internal::CaptureStderr();
  CheckpointWriter going_on(state_of(0), true, no_write);
  for (int step = 0; step < 5; ++step) going_on.guard([] { throw full_disk("no room for metrics"); });
  EXPECT_FALSE(going_on.failed());
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, HasSubstr("no room for metrics"));
  EXPECT_EQ(said.find("no room"), said.rfind("no room")) << said;
}

TEST(CheckpointWriter, TheEndWaitsForTheWritingAndLogsAnErrorNobodyAskedFor) {
  bool written = false;
  ::testing::internal::CaptureStderr();
  {
    CheckpointWriter writer(state_of(0), false, [&](const TrainingState&) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      written = true;
      throw Error(ErrorKind::io, "too late to tell");
    });
    writer.snapshot(state_of(1));
    writer.start();
  }
  EXPECT_TRUE(written);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("too late to tell"));
}

TEST(CheckpointWriter, DescriptorsDoNotGrowOverManyCheckpoints) {
  const TempDir run;
  const auto descriptors = [] {
    const fs::directory_iterator all("/proc/self/fd");
    return std::distance(begin(all), end(all));
  };
  const int64_t checkpoints = std::getenv("LORASHARD_LONG_TESTS") ? 2000 : 40;
  std::printf("%ld checkpoints\n", static_cast<long>(checkpoints));
  CheckpointWriter writer(state_of(0), false, [&](const TrainingState& copy) {
    remove_old_checkpoints(run.path(), 2, write_checkpoint(run.path(), copy, {{"a", copy.parameters}}, {}));
  });
  std::ptrdiff_t first = 0;
  for (int64_t step = 1; step <= checkpoints; ++step) {
    writer.snapshot(state_of(step));
    writer.start();
    writer.finish();
    if (step == 1) first = descriptors();
  }
  EXPECT_EQ(descriptors(), first);
  EXPECT_EQ(newest_checkpoint(run.path()), run / fmt::format("checkpoint-{}", checkpoints));
}

// What a step pays for a checkpoint at sizes people have. Printed for docs/reliability.md; a test has no limit of time.
TEST(CheckpointWriter, SnapshotsOfRealSizesAreWrittenWhole) {
  struct Size {
    const char* name;
    int64_t parameters;
  };
  std::vector<Size> sizes = {{"SD1.5, rank 4", 797'184}};
  if (std::getenv("LORASHARD_LONG_TESTS")) {
    sizes.push_back({"SD1.5, rank 64", 797'184 * 16});
    sizes.push_back({"SD1.5, rank 128", 797'184 * 32});
  }
  for (const Size& size : sizes) {
    const TempDir run;
    TrainingState live = state_of(1, size.parameters);
    std::vector<double> snapshots, writes;
    uint64_t bytes = 0;
    CheckpointWriter writer(live, false, [&](const TrainingState& copy) {
      const auto start = std::chrono::steady_clock::now();
      const auto folder = write_checkpoint(run.path(), copy, {{"a", copy.parameters}}, {});
      remove_old_checkpoints(run.path(), 1, folder);
      bytes = checkpoint_bytes(folder);
      writes.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count());
    });
    for (int64_t step = 1; step <= 9; ++step) {
      live.global_step = step;
      live.parameters.fill_(static_cast<double>(step));
      snapshots.push_back(writer.snapshot(live).snapshot_ms);
      writer.start();
      writer.finish();
    }
    std::sort(snapshots.begin(), snapshots.end());
    std::sort(writes.begin(), writes.end());
    std::printf("%s: %ld parameters, %.1f MB; snapshot median %.2f ms, most %.2f ms; written and verified in %.0f ms\n",
                size.name, static_cast<long>(size.parameters), static_cast<double>(bytes) / 1e6, snapshots[4],
                snapshots[8], writes[4]);
    const TrainingState read = read_checkpoint(run / "checkpoint-9");
    EXPECT_TRUE(at::equal(read.parameters, live.parameters));
    EXPECT_TRUE(at::equal(read.parts.tensors.at("optimizer/exp_avg_sq"), live.parts.tensors.at("optimizer/exp_avg_sq")));
  }
}

}  // namespace
}  // namespace lorashard
