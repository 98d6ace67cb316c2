#include "trainer/checkpoint.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <random>
#include <set>
#include <utility>
#include <vector>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int64_t kParameters = 1000;

TrainingState state_of(int64_t step) {
  const at::Tensor x = at::arange(kParameters, at::kDouble) + static_cast<double>(step);
  return {.global_step = step,
          .updates = step - 1,
          .skipped_in_a_row = 1,
          .parameters = at::sin(x).to(at::kFloat),
          .parts = {.tensors = {{"optimizer/exp_avg", (at::cos(x) * 1e-3).to(at::kFloat)},
                                {"optimizer/quantised", (x.remainder(256)).to(at::kByte)}},
                    .scalars = {{"optimizer/d", 0.1 + static_cast<double>(step)}, {"loss_scale/good_steps", (int64_t{1} << 53) + 2 * step + 1}}},
          .recipe = "seed = 1337\noutput_dir = \"r\xc3\xbcn\"\n",
          .pack_hash = "9f86d081",
          .base_hash = "60303ae2",
          .arithmetic = step % 2 == 0 ? "processor: A\nGPU: none\n" : "",
          .program = step % 2 == 0 ? "program: 1234\n" : "",
          .parameter_keys = {"unet.a.lora.down.weight 4x125", "unet.a.lora.up.weight 125x4"}};
}

StateDict adapter_of(int64_t step) {
  return {{"unet.a.lora.down.weight", state_of(step).parameters.narrow(0, 0, 500).view({4, 125})},
          {"unet.a.lora.up.weight", state_of(step).parameters.narrow(0, 500, 500).view({125, 4})}};
}

fs::path write(const fs::path& run, int64_t step) {
  return write_checkpoint(run, state_of(step), adapter_of(step), {{"note", "test"}});
}

std::set<std::string> names_in(const fs::path& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
  return names;
}

void expect_state(const TrainingState& found, int64_t step) {
  const TrainingState expected = state_of(step);
  EXPECT_EQ(found.global_step, expected.global_step);
  EXPECT_EQ(found.updates, expected.updates);
  EXPECT_EQ(found.skipped_in_a_row, expected.skipped_in_a_row);
  EXPECT_TRUE(at::equal(found.parameters, expected.parameters));
  ASSERT_EQ(found.parts.tensors.size(), expected.parts.tensors.size());
  for (const auto& [name, tensor] : expected.parts.tensors) {
    ASSERT_EQ(found.parts.tensors.at(name).scalar_type(), tensor.scalar_type()) << name;
    EXPECT_TRUE(at::equal(found.parts.tensors.at(name), tensor)) << name;
  }
  EXPECT_EQ(found.parts.scalars, expected.parts.scalars);
  EXPECT_EQ(found.recipe, expected.recipe);
  EXPECT_EQ(found.pack_hash, expected.pack_hash);
  EXPECT_EQ(found.base_hash, expected.base_hash);
  EXPECT_EQ(found.arithmetic, expected.arithmetic);
  EXPECT_EQ(found.program, expected.program);
  EXPECT_EQ(found.parameter_keys, expected.parameter_keys);
}

/// The Error that `action` throws, and a failure when it throws none.
Error error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error;
  }
  ADD_FAILURE() << "no error";
  return Error(ErrorKind::internal, "");
}

/// Runs `action` in a child process, whose exit code it returns (the action's result).
int in_child(const std::function<int()>& action) {
  const pid_t child = fork();
  if (child == 0) _exit(action());
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// 0 when writing step `step` fails as it must: Error(io) that names the checkpoint.
int expect_write_fails(const fs::path& run, int64_t step) {
  try {
    write(run, step);
    return 1;
  } catch (const Error& error) {
    const bool named = error.message().find(fmt::format("checkpoint-{}'", step)) != std::string::npos;
    return error.kind() == ErrorKind::io && named ? 0 : 2;
  }
}

TEST(Checkpoint, WhatIsWrittenIsReadBackWithTheSameBits) {
  const TempDir run;
  const fs::path folder = write(run.path(), 20);
  EXPECT_EQ(folder, run / "checkpoint-20");
  expect_state(read_checkpoint(folder), 20);
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-20"));
  EXPECT_THAT(names_in(folder),
              ElementsAre("manifest.json", "pytorch_lora_weights.safetensors", "recipe.toml", "state.safetensors"));
  const SafetensorsFile adapter(folder / "pytorch_lora_weights.safetensors");
  EXPECT_EQ(adapter.metadata().at("note"), "test");
  EXPECT_TRUE(at::equal(adapter.tensor("unet.a.lora.up.weight"), adapter_of(20).at("unet.a.lora.up.weight")));
}

TEST(Checkpoint, TheBytesDependOnTheStateAlone) {
  const TempDir one, other;
  write(one.path(), 7);
  write(other.path(), 7);
  for (const std::string& name : names_in(one / "checkpoint-7")) {
    EXPECT_EQ(read_file(one / "checkpoint-7" / name), read_file(other / "checkpoint-7" / name)) << name;
  }
}

TEST(Checkpoint, TensorsReadCanBeWrittenAndOutliveTheFolder) {
  const TempDir run;
  const fs::path folder = write(run.path(), 1);
  TrainingState state = read_checkpoint(folder);
  fs::remove_all(folder);
  state.parameters.add_(1);
  EXPECT_TRUE(at::equal(state.parameters, state_of(1).parameters + 1));
}

TEST(Checkpoint, TheNewestIsChosenByStepAndNotByTimeOrName) {
  const TempDir run;
  EXPECT_EQ(newest_checkpoint(run.path()), std::nullopt);
  EXPECT_EQ(newest_checkpoint(run / "nowhere"), std::nullopt);
  for (const int64_t step : {1000, 900, 20}) write(run.path(), step);
  EXPECT_EQ(newest_checkpoint(run.path()), run / "checkpoint-1000");
}

TEST(Checkpoint, OtherNamesAreNoCheckpoints) {
  const TempDir run;
  write(run.path(), 5);
  for (const char* name : {"checkpoint-6.tmp-0123456789abcdef", "checkpoint-", "checkpoint-x", "checkpoint-07",
                           "checkpoint--9", "checkpoint-99999999999999999999", "checkpoint-8.bak"}) {
    fs::copy(run / "checkpoint-5", run / name);
  }
  write_durably(run / "checkpoint-9", "a file");
  EXPECT_EQ(newest_checkpoint(run.path()), run / "checkpoint-5");
}

TEST(Checkpoint, ACheckpointUnderAnotherNumberIsPassedOver) {
  const TempDir run;
  write(run.path(), 5);
  fs::copy(run / "checkpoint-5", run / "checkpoint-6");
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(newest_checkpoint(run.path()), run / "checkpoint-5");
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("checkpoint-6"));
}

TEST(Checkpoint, AMissingFileIsNamedAndTheOneBeforeIsUsed) {
  const TempDir run;
  const auto names = names_in(write(run.path(), 1));
  for (const std::string& name : names) {
    const fs::path folder = write(run.path(), 2);
    fs::remove(folder / name);
    const Error error = error_of([&] { read_checkpoint(folder); });
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr((folder / name).string()));
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(newest_checkpoint(run.path()), run / "checkpoint-1");
    EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr((folder / name).string()));
    fs::remove_all(folder);
  }
}

TEST(Checkpoint, ATruncatedOrLongerFileIsNamed) {
  const TempDir run;
  const auto names = names_in(write(run.path(), 2));
  for (const std::string& name : names) {
    const fs::path file = run / "checkpoint-2" / name;
    const uintmax_t size = fs::file_size(file);
    for (const uintmax_t wrong : {uintmax_t{0}, size / 2, size - 1, size + 1}) {
      write(run.path(), 2);
      fs::resize_file(file, wrong);
      const Error error = error_of([&] { read_checkpoint(run / "checkpoint-2"); });
      EXPECT_EQ(error.kind(), ErrorKind::bad_data) << name << " " << wrong;
      EXPECT_THAT(error.message(), HasSubstr(file.string()));
    }
  }
}

TEST(Checkpoint, EveryFlippedBitIsFound) {
  const TempDir run;
  const fs::path folder = write(run.path(), 3);
  const int flips = std::getenv("LORASHARD_LONG_TESTS") ? 20000 : 300;
  std::printf("%d bit flips over %zu files\n", flips, names_in(folder).size());
  std::mt19937_64 generator(11);
  const auto names = names_in(folder);
  const std::vector<std::string> files(names.begin(), names.end());
  for (int flip = 0; flip < flips; ++flip) {
    const fs::path file = folder / files[generator() % files.size()];
    const std::string whole = read_file(file);
    std::string damaged = whole;
    const size_t place = generator() % damaged.size();
    damaged[place] = static_cast<char>(damaged[place] ^ (1 << generator() % 8));
    std::ofstream(file, std::ios::binary) << damaged;
    ASSERT_EQ(error_of([&] { read_checkpoint(folder); }).kind(), ErrorKind::bad_data) << file << " byte " << place;
    std::ofstream(file, std::ios::binary) << whole;
  }
  expect_state(read_checkpoint(folder), 3);
}

TEST(Checkpoint, AFullDiskLeavesTheOneBeforeAndNothingElse) {
  const TempDir run;
  write(run.path(), 1);
  const uintmax_t largest = fs::file_size(run / "checkpoint-1" / "state.safetensors");
  // A file size limit gives EFBIG after a short write, as a full disk gives ENOSPC: at every file in turn.
  for (const uintmax_t limit : {uintmax_t{0}, uintmax_t{10}, uintmax_t{100}, uintmax_t{4096}, largest - 1}) {
    EXPECT_EQ(in_child([&] {
                signal(SIGXFSZ, SIG_IGN);
                const rlimit size{limit, limit};
                setrlimit(RLIMIT_FSIZE, &size);
                return expect_write_fails(run.path(), 2);
              }),
              0)
        << limit;
    EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-1"));
  }
  expect_state(read_checkpoint(run / "checkpoint-1"), 1);
}

TEST(Checkpoint, AFullDiskWhileReplacingLeavesTheOldOne) {
  const TempDir run;
  write(run.path(), 2);
  const std::string before = read_file(run / "checkpoint-2" / "manifest.json");
  EXPECT_EQ(in_child([&] {
              signal(SIGXFSZ, SIG_IGN);
              const rlimit size{4096, 4096};
              setrlimit(RLIMIT_FSIZE, &size);
              return expect_write_fails(run.path(), 2);
            }),
            0);
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-2"));
  EXPECT_EQ(read_file(run / "checkpoint-2" / "manifest.json"), before);
  expect_state(read_checkpoint(run / "checkpoint-2"), 2);
}

TEST(Checkpoint, WithoutPermissionOrFolderTheErrorNamesTheCheckpoint) {
  const TempDir run;
  EXPECT_EQ(expect_write_fails(run / "nowhere", 2), 0);
  write(run.path(), 1);
  // root may write anywhere, so the child becomes nobody.
  ASSERT_EQ(chmod(run.path().c_str(), 0555), 0);
  const int code = in_child([&] {
    if (geteuid() == 0 && (setgid(65534) != 0 || setuid(65534) != 0)) return 3;
    return expect_write_fails(run.path(), 2);
  });
  ASSERT_EQ(chmod(run.path().c_str(), 0755), 0);
  if (code == 3) GTEST_SKIP() << "root of a container that has no user nobody may write anywhere";
  EXPECT_EQ(code, 0);
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-1"));
}

TEST(Checkpoint, ACheckpointThatIsThereIsReplacedWhole) {
  const TempDir run;
  write(run.path(), 4);
  TrainingState changed = state_of(4);
  changed.updates = 99;
  write_checkpoint(run.path(), changed, adapter_of(4), {});
  EXPECT_EQ(read_checkpoint(run / "checkpoint-4").updates, 99);
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-4"));
  fs::remove(run / "checkpoint-4" / "state.safetensors");  // and so is a broken one
  write(run.path(), 4);
  expect_state(read_checkpoint(run / "checkpoint-4"), 4);
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-4"));
}

TEST(Checkpoint, AStartThatTookOverStopsTheOneThatIsBeingWritten) {
  const TempDir run;
  write(run.path(), 3);
  const Error error = error_of([&] {
    write_checkpoint(run.path(), state_of(4), adapter_of(4), {}, [&] { discard_unfinished_checkpoints(run.path()); });
  });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), HasSubstr("checkpoint-4"));
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-3"));
}

TEST(Checkpoint, IsNotPublishedByOneThatMayNotWriteAnyMore) {
  const TempDir run;
  write(run.path(), 3);
  const Error error = error_of([&] {
    write_checkpoint(run.path(), state_of(4), adapter_of(4), {}, [&] {
      EXPECT_EQ(names_in(run.path()).size(), 2u) << "all of it is written by then";
      throw Error(ErrorKind::usage, "another run has the folder");
    });
  });
  EXPECT_THAT(error.message(), HasSubstr("another run has the folder"));
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-3"));
}

TEST(Checkpoint, RotationKeepsTheNewestAndWhatIsNoCheckpoint) {
  const TempDir run;
  for (int64_t step = 1; step <= 5; ++step) write(run.path(), step);
  fs::create_directory(run / "checkpoint-9.tmp-0123456789abcdef");
  fs::create_directory(run / "checkpoint-9.tmp-mine");
  write_durably(run / "metrics.jsonl", "");
  remove_old_checkpoints(run.path(), 0, run / "checkpoint-5");
  EXPECT_EQ(names_in(run.path()).size(), 8u) << "no limit";
  const Error error = error_of([&] {
    remove_old_checkpoints(run.path(), 2, run / "checkpoint-5", [] { throw Error(ErrorKind::usage, "another run has the folder"); });
  });
  EXPECT_THAT(error.message(), HasSubstr("another run has the folder"));
  EXPECT_EQ(names_in(run.path()).size(), 8u);
  discard_unfinished_checkpoints(run.path());
  EXPECT_EQ(names_in(run.path()).size(), 7u);
  remove_old_checkpoints(run.path(), 2, run / "checkpoint-5");
  EXPECT_THAT(names_in(run.path()),
              ElementsAre("checkpoint-4", "checkpoint-5", "checkpoint-9.tmp-mine", "metrics.jsonl"));
  remove_old_checkpoints(run.path(), 1, run / "checkpoint-5");
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-5", "checkpoint-9.tmp-mine", "metrics.jsonl"));
}

TEST(Checkpoint, RotationNeverRemovesTheOneJustWritten) {
  const TempDir run;
  for (const int64_t step : {10, 20, 30}) write(run.path(), step);
  write(run.path(), 15);  // a run that went on from an older checkpoint
  remove_old_checkpoints(run.path(), 2, run / "checkpoint-15");
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-15", "checkpoint-30"));
  remove_old_checkpoints(run.path(), 1, run / "checkpoint-15");
  EXPECT_THAT(names_in(run.path()), ElementsAre("checkpoint-15"));
}

TEST(Checkpoint, RotationRemovesNothingWhenTheOneJustWrittenIsBroken) {
  const TempDir run;
  for (const int64_t step : {1, 2, 3}) write(run.path(), step);
  fs::create_directory(run / "checkpoint-9.tmp-0123456789abcdef");
  const fs::path file = run / "checkpoint-3" / "state.safetensors";
  std::string damaged = read_file(file);
  damaged.back() = static_cast<char>(damaged.back() ^ 1);
  std::ofstream(file, std::ios::binary) << damaged;
  const Error error = error_of([&] { remove_old_checkpoints(run.path(), 1, run / "checkpoint-3"); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_THAT(error.message(), HasSubstr(file.string()));
  EXPECT_EQ(names_in(run.path()).size(), 4u);
}

TEST(Checkpoint, AKillAtAnyInstantLeavesOnlyWholeCheckpoints) {
  const TempDir run;
  write(run.path(), 1);
  const int kills = std::getenv("LORASHARD_LONG_TESTS") ? 200 : 15;
  std::printf("%d kills\n", kills);
  std::mt19937 generator(5);
  int64_t reached = 1;
  // Within the first few checkpoints, however slow this disk is.
  const auto start = std::chrono::steady_clock::now();
  write(run.path(), ++reached);
  const auto a_write = std::chrono::duration_cast<std::chrono::microseconds>(std::chrono::steady_clock::now() - start).count();
  for (int trial = 0; trial < kills; ++trial) {
    const pid_t child = fork();
    if (child == 0) {
      // Every second one is written twice, so that kills fall on replacing too.
      for (int64_t step = reached + 1;; ++step) {
        for (int64_t time = 0; time <= step % 2; ++time) {
          remove_old_checkpoints(run.path(), 2, write(run.path(), step));
        }
      }
    }
    usleep(static_cast<useconds_t>(generator() % static_cast<uint64_t>(std::max<int64_t>(100000, 4 * a_write))));
    kill(child, SIGKILL);
    ASSERT_EQ(waitpid(child, nullptr, 0), child);
    ::testing::internal::CaptureStderr();
    const auto newest = newest_checkpoint(run.path());
    EXPECT_EQ(::testing::internal::GetCapturedStderr(), "") << "no checkpoint is half there";
    ASSERT_TRUE(newest.has_value()) << trial;
    const TrainingState state = read_checkpoint(*newest);
    ASSERT_GE(state.global_step, reached);
    reached = state.global_step;
    expect_state(state, reached);
  }
  EXPECT_GT(reached, 2) << "some child got to write";
  discard_unfinished_checkpoints(run.path());
  remove_old_checkpoints(run.path(), 1, write(run.path(), reached + 1));
  EXPECT_EQ(names_in(run.path()).size(), 1u) << "and what the kills left is gone";
}

TEST(Checkpoint, AManifestOfAnotherFormatOrVersionIsRefused) {
  const TempDir run;
  const fs::path manifest = write(run.path(), 1) / "manifest.json";
  const std::string whole = read_file(manifest);
  for (const auto& [from, to] : std::vector<std::pair<std::string, std::string>>{
           {"\"version\": 2", "\"version\": 1"}, {"lorashard-checkpoint", "another-checkpoint"}}) {
    std::string other = whole;
    ASSERT_NE(other.find(from), std::string::npos);
    write_durably(manifest, other.replace(other.find(from), from.size(), to));
    const Error error = error_of([&] { read_checkpoint(run / "checkpoint-1"); });
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_THAT(error.message(), HasSubstr(from.starts_with('"') ? "expected version 2, found 1" : "expected format"));
    // One of an older version is not passed over: the run would begin anew.
    if (from.starts_with('"')) {
      EXPECT_EQ(error_of([&] { newest_checkpoint(run.path()); }).message(), error.message());
    }
  }
}

TEST(Checkpoint, AFolderThatIsNotThereIsWrongUse) {
  const TempDir run;
  EXPECT_EQ(error_of([&] { read_checkpoint(run / "checkpoint-1"); }).kind(), ErrorKind::usage);
}

}  // namespace
}  // namespace lorashard
