#include "trainer/metrics.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

StepMetrics at_step(int64_t step, double loss = 0.125) {
  return {.global_step = step,
          .epoch = double(step) / 7,
          .loss = loss,
          .lr = 1e-4,
          .grad_norm = 0.1,
          .step_ms = 12.5,
          .data_wait_ms = 0.25,
          .images_per_second = 80,
          .wall_s = 0.0125 * double(step)};
}

std::vector<std::string> lines(const TempDir& folder) {
  std::ifstream file(folder / "metrics.jsonl");
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) out.push_back(line);
  return out;
}

std::vector<int64_t> steps(const TempDir& folder) {
  std::vector<int64_t> out;
  for (const std::string& line : lines(folder))
    out.push_back(nlohmann::json::parse(line).at("global_step").get<int64_t>());
  return out;
}

void write_steps(const TempDir& folder, int64_t first_step, int64_t last_step) {
  Metrics metrics(folder.path(), {}, "logs", first_step, 100);
  for (int64_t step = first_step + 1; step <= last_step; ++step) metrics.write(at_step(step));
}

TEST(Metrics, EachStepIsALineOfJsonThatReadsBackTheSameDoubles) {
  TempDir folder;
  Metrics metrics(folder.path(), {}, "logs", 0, 100);
  StepMetrics written = at_step(1, 0.1 + 0.2);
  written.lr = 1.0 / 3 * 1e-9;
  metrics.write(written);
  const auto json = nlohmann::json::parse(lines(folder).at(0));
  EXPECT_EQ(json.at("global_step").get<int64_t>(), 1);
  EXPECT_EQ(json.at("loss").get<double>(), 0.1 + 0.2);
  EXPECT_EQ(json.at("lr").get<double>(), written.lr);
  EXPECT_EQ(json.at("epoch").get<double>(), written.epoch);
  EXPECT_EQ(json.at("skipped").get<bool>(), false);
  for (const char* key : {"grad_norm", "step_ms", "images_per_second", "data_wait_ms", "wall_s"})
    EXPECT_TRUE(json.at(key).is_number()) << key;
}

TEST(Metrics, ALineIsInTheFileAsSoonAsItsStepIsOver) {
  TempDir folder;
  Metrics metrics(folder.path(), {}, "logs", 0, 100);
  for (int64_t step = 1; step <= 3; ++step) {
    metrics.write(at_step(step));
    EXPECT_EQ(steps(folder).size(), size_t(step));
  }
}

TEST(Metrics, ALineThatFoundNoRoomComesWithTheNext) {
  TempDir folder;
  Metrics metrics(folder.path(), {}, "logs", 0, 100);
  metrics.write(at_step(1));
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit whole{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &whole), 0);
  rlimit little = whole;
  little.rlim_cur = std::filesystem::file_size(folder / "metrics.jsonl") + 10;
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &little), 0);
  EXPECT_THROW(metrics.write(at_step(2)), Error);
  EXPECT_THROW(metrics.write(at_step(3)), Error);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &whole), 0);
  std::signal(SIGXFSZ, before);
  EXPECT_EQ(steps(folder), std::vector<int64_t>({1}));
  metrics.write(at_step(4));
  EXPECT_EQ(steps(folder), std::vector<int64_t>({1, 2, 3, 4}));
}

TEST(Metrics, WhatIsNotFiniteIsNull) {
  TempDir folder;
  Metrics metrics(folder.path(), {"tensorboard"}, "logs", 0, 100);
  StepMetrics skipped = at_step(1, INFINITY);
  skipped.grad_norm = NAN;
  skipped.skipped = true;
  metrics.write(skipped);
  const auto json = nlohmann::json::parse(lines(folder).at(0));
  EXPECT_TRUE(json.at("loss").is_null());
  EXPECT_TRUE(json.at("grad_norm").is_null());
  EXPECT_TRUE(json.at("skipped").get<bool>());
}

TEST(Metrics, AResumeCutsTheLinesAfterItsStep) {
  TempDir folder;
  write_steps(folder, 0, 20);
  write_steps(folder, 12, 14);
  EXPECT_EQ(steps(folder), (std::vector<int64_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14}));
}

TEST(Metrics, AStartThatWasCutOffWritesNoLineIntoTheNextOnesFile) {
  TempDir folder;
  Metrics before(folder.path(), {}, "logs", 0, 100);
  before.write(at_step(1));
  before.write(at_step(2));
  Metrics now(folder.path(), {}, "logs", 2, 100);  // nothing to cut
  before.write(at_step(3));
  now.write(at_step(3));
  now.write(at_step(4));
  EXPECT_EQ(steps(folder), (std::vector<int64_t>{1, 2, 3, 4}));
}

TEST(Metrics, ALineThatAKilledRunLeftHalfWrittenIsDropped) {
  TempDir folder;
  write_steps(folder, 0, 5);
  std::ofstream(folder / "metrics.jsonl", std::ios::app) << R"({"global_step": 6, "epo)";
  write_steps(folder, 5, 6);
  EXPECT_EQ(steps(folder), (std::vector<int64_t>{1, 2, 3, 4, 5, 6}));
}

TEST(Metrics, ALineWithoutItsNewlineIsNotWhole) {
  TempDir folder;
  write_steps(folder, 0, 3);
  std::string text = read_file(folder / "metrics.jsonl");
  text.pop_back();
  std::ofstream(folder / "metrics.jsonl", std::ios::trunc) << text;
  write_steps(folder, 3, 4);
  EXPECT_EQ(steps(folder), (std::vector<int64_t>{1, 2, 4}));
}

TEST(Metrics, ANewRunStartsAnEmptyFile) {
  TempDir folder;
  write_steps(folder, 0, 9);
  write_steps(folder, 0, 2);
  EXPECT_EQ(steps(folder), (std::vector<int64_t>{1, 2}));
}

TEST(Metrics, EventFilesLieInTheLoggingDirOnlyWhenAskedFor) {
  TempDir folder;
  { Metrics metrics(folder.path(), {}, "logs", 0, 1); }
  EXPECT_FALSE(std::filesystem::exists(folder / "logs"));
  {
    Metrics metrics(folder.path(), {"tensorboard"}, "logs", 0, 1);
    metrics.write(at_step(1));
    metrics.flush();
  }
  const std::filesystem::directory_iterator files(folder / "logs");
  ASSERT_NE(files, std::filesystem::directory_iterator());
  const std::string bytes = read_file(files->path());
  for (const char* tag :
       {"train/loss", "train/lr", "train/grad_norm", "train/images_per_second", "train/data_wait_ms"}) {
    EXPECT_NE(bytes.find(tag), std::string::npos) << tag;
  }
}

TEST(Metrics, AnUnknownTargetIsRefused) {
  TempDir folder;
  try {
    Metrics metrics(folder.path(), {"wandb"}, "logs", 0, 1);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(error.message().find("'wandb'"), std::string::npos);
  }
}

}  // namespace
}  // namespace lorashard
