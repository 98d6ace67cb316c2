#include "dist/log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace lorashard {
namespace {

using ::testing::internal::CaptureStderr;
using ::testing::internal::GetCapturedStderr;

class Log : public ::testing::Test {
 protected:
  void TearDown() override {
    log::set_rank(0, 1);
    log::set_level(log::Level::info);
  }
};

TEST_F(Log, ALoneProcessHasNoPrefix) {
  CaptureStderr();
  log::info("hello {}", 1);
  log::warning("careful");
  log::error("no");
  EXPECT_EQ(GetCapturedStderr(), "hello 1\nwarning: careful\nerror: no\n");
}

TEST_F(Log, EveryLineOfARankHasItsPrefix) {
  log::set_rank(0, 2);
  CaptureStderr();
  log::info("hello");
  log::error("no\nhint: yes\n\nend");
  EXPECT_EQ(GetCapturedStderr(), "rank 0: hello\nrank 0: error: no\nrank 0: hint: yes\nrank 0: \nrank 0: end\n");
}

TEST_F(Log, InformationAndProgressComeFromRankZeroOnlyWarningsFromAll) {
  log::set_rank(3, 4);
  CaptureStderr();
  log::info("hello");
  log::status("50 %");
  log::status("");
  log::warning("careful");
  EXPECT_EQ(GetCapturedStderr(), "rank 3: warning: careful\n");
}

TEST_F(Log, LevelsBelowTheWantedOneAreDropped) {
  CaptureStderr();
  log::debug("hidden");
  log::set_level(log::Level::debug);
  log::debug("shown");
  log::set_level(log::Level::error);
  log::warning("hidden");
  log::status("hidden");
  log::error("shown {}", "{}");
  EXPECT_EQ(GetCapturedStderr(), "shown\nerror: shown {}\n");
}

TEST_F(Log, ProgressIsThinnedOutWhereStderrIsNoTerminal) {
  CaptureStderr();
  for (int i = 1; i <= 100; ++i) log::status(fmt::format("step {} of 100", i));
  log::status("");
  EXPECT_EQ(GetCapturedStderr(), "step 1 of 100\nstep 100 of 100\n");
  CaptureStderr();
  log::status("again");
  log::status("");
  EXPECT_EQ(GetCapturedStderr(), "again\n") << "a new status line starts afresh";
}

}  // namespace
}  // namespace lorashard
