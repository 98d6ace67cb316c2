#include "trainer/run_lease.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <vector>

#include "dist/durable_file.h"
#include "dist/error.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

// The real ones are for hosts and networks.
constexpr LeaseTimes kQuick{milliseconds(20), milliseconds(60), milliseconds(400)};

constexpr LeaseTimes kSlow{milliseconds(20), milliseconds(60), milliseconds(3000)};  // a look falls into its wait, on any machine

std::optional<Error> refusal(const fs::path& folder, const LeaseTimes& times = kQuick) {
  try {
    const RunLease lease(folder, times);
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

nlohmann::json lease_of(const fs::path& folder) { return nlohmann::json::parse(read_file(folder / "run.lease")); }

/// The lease that this process would write, with other values: as a process elsewhere left it.
void leave_lease(const fs::path& folder, const nlohmann::json& other, int64_t seconds_ago) {
  nlohmann::json lease;
  {
    const RunLease ours(folder, kQuick);
    lease = lease_of(folder);
  }
  lease.update(other);
  lease["id"] = "somebody else";
  write_durably(folder / "run.lease", lease.dump());
  struct timespec then {};
  clock_gettime(CLOCK_REALTIME, &then);
  then.tv_sec -= seconds_ago;
  const struct timespec times[2] = {then, then};
  ASSERT_EQ(utimensat(AT_FDCWD, (folder / "run.lease").c_str(), times, 0), 0);
}

const nlohmann::json kElsewhere = {{"host", "node7"}, {"boot_id", "another boot"}, {"pid", 4711}};

TEST(RunLease, ItNamesItsHolderAndGoesWithIt) {
  const TempDir run;
  {
    const RunLease lease(run.path(), kQuick);
    lease.require_held();
    EXPECT_EQ(lease_of(run.path()).at("pid").get<int>(), getpid());
    for (const char* key : {"host", "boot_id", "pid_namespace", "start_ticks", "started"}) {
      EXPECT_NE(lease_of(run.path()).at(key).get<std::string>(), "") << key;
    }
  }
  EXPECT_TRUE(fs::is_empty(run.path()));
  EXPECT_EQ(refusal(run.path()), std::nullopt);
}

TEST(RunLease, ASecondRunIsRefusedNamingTheFirst) {
  const TempDir run;
  const RunLease lease(run.path(), kQuick);
  const auto error = refusal(run.path());
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::usage);
  EXPECT_THAT(error->message(), HasSubstr(fmt::format("process {}", getpid())));
  EXPECT_THAT(error->message(), HasSubstr(run.path().string()));
  lease.require_held();
  EXPECT_EQ(std::distance(fs::directory_iterator(run.path()), {}), 1) << "the refused one leaves nothing";
}

TEST(RunLease, ASecondRunWaitsForAFirstThatIsEnding) {
  const TempDir run;
  auto lease = std::make_unique<RunLease>(run.path(), kQuick);
  std::thread ending([&] {
    std::this_thread::sleep_for(milliseconds(100));
    lease.reset();
  });
  EXPECT_EQ(refusal(run.path(), {milliseconds(20), milliseconds(60000), milliseconds(60000)}), std::nullopt);
  ending.join();
}

TEST(RunLease, OneOfManyAtOnceGetsIt) {
  for (int round = 0; round < 10; ++round) {
    const TempDir run;
    if (round % 2 == 1) leave_lease(run.path(), {{"pid", 1 << 22}}, 0);  // and so with one that is stale
    std::atomic<int> got = 0, refused = 0;
    std::vector<std::thread> contenders;
    for (int i = 0; i < 8; ++i) {
      contenders.emplace_back([&] {
        try {
          const RunLease lease(run.path(), kQuick);
          ++got;
          while (got + refused < 8) std::this_thread::sleep_for(milliseconds(1));
          lease.require_held();
        } catch (const Error& error) {
          ++refused;
        }
      });
    }
    for (auto& contender : contenders) contender.join();
    EXPECT_EQ(got, 1);
    EXPECT_EQ(refused, 7);
  }
}

TEST(RunLease, TheLeaseOfAKilledProcessIsTakenOverAtOnceAndThatIsSaid) {
  const TempDir run;
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    const RunLease lease(run.path());
    if (write(ready[1], "x", 1) != 1) _exit(1);
    while (true) pause();
  }
  char got = 0;
  ASSERT_EQ(read(ready[0], &got, 1), 1);
  ASSERT_TRUE(refusal(run.path()));
  kill(child, SIGKILL);
  // Not waited for yet: a zombie, as under a busy mpirun.
  siginfo_t info;
  ASSERT_EQ(waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOWAIT), 0);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(refusal(run.path()), std::nullopt);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr(fmt::format("process {}", child)));
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  close(ready[0]);
  close(ready[1]);
}

TEST(RunLease, AProcessNumberThatIsAnotherProcessNowIsNotTheHolder) {
  const TempDir run;
  leave_lease(run.path(), {{"pid", getpid()}, {"start_ticks", "1"}}, 0);
  EXPECT_EQ(refusal(run.path()), std::nullopt);
}

TEST(RunLease, AHolderElsewhereThatShowsAHeartbeatIsLive) {
  const TempDir run;
  leave_lease(run.path(), kElsewhere, 3600);  // its clock, or ours, is an hour off
  std::atomic<bool> done = false;
  std::thread beating([&] {
    while (!done) {
      utimensat(AT_FDCWD, (run / "run.lease").c_str(), nullptr, 0);
      std::this_thread::sleep_for(milliseconds(5));
    }
  });
  const auto error = refusal(run.path(), {milliseconds(20000), milliseconds(60), milliseconds(400)});
  done = true;
  beating.join();
  ASSERT_TRUE(error);
  EXPECT_THAT(error->message(), HasSubstr("node7"));
}

TEST(RunLease, AHolderElsewhereWithoutAHeartbeatIsGoneAfterAWhile) {
  for (const int64_t seconds_ago : {3600, 0, -3600}) {
    const TempDir run;
    const auto start = std::chrono::steady_clock::now();
    leave_lease(run.path(), kElsewhere, seconds_ago);
    ::testing::internal::CaptureStderr();
    EXPECT_EQ(refusal(run.path(), kSlow), std::nullopt);
    const std::string said = ::testing::internal::GetCapturedStderr();
    EXPECT_THAT(said, HasSubstr("node7"));
    if (seconds_ago > 0) continue;
    EXPECT_THAT(said, HasSubstr("waiting")) << "it may only be slow";
    EXPECT_GE(std::chrono::steady_clock::now() - start, kSlow.stale - milliseconds(100));
  }
}

TEST(RunLease, ARequeuedSlurmJobTakesItsOwnLeaseOver) {
  const TempDir run;
  auto elsewhere = kElsewhere;
  elsewhere["slurm_job_id"] = "17";
  elsewhere["slurm_restart_count"] = "0";
  setenv("SLURM_JOB_ID", "17", 1);
  setenv("SLURM_RESTART_COUNT", "1", 1);
  leave_lease(run.path(), elsewhere, 0);
  ::testing::internal::CaptureStderr();
  EXPECT_EQ(refusal(run.path(), {milliseconds(20), milliseconds(60), milliseconds(1 << 30)}), std::nullopt);
  EXPECT_THAT(::testing::internal::GetCapturedStderr(), HasSubstr("Slurm job 17"));
  unsetenv("SLURM_JOB_ID");
  unsetenv("SLURM_RESTART_COUNT");
}

TEST(RunLease, ARequeuedSlurmJobTakesItFromAStartThatLivesOnAndThatOneMayNotWrite) {
  const TempDir run;
  setenv("SLURM_JOB_ID", "17", 1);
  setenv("SLURM_RESTART_COUNT", "0", 1);
  const RunLease first(run.path(), kQuick);
  EXPECT_NE(refusal(run.path()), std::nullopt) << "the same start of the same job";
  setenv("SLURM_RESTART_COUNT", "1", 1);
  const RunLease second(run.path(), kQuick);
  EXPECT_NO_THROW(second.require_held());
  EXPECT_THROW(first.require_held(), Error);
  unsetenv("SLURM_JOB_ID");
  unsetenv("SLURM_RESTART_COUNT");
}

TEST(RunLease, ALeaseThatIsNoLeaseIsTakenOverLikeOneWithoutAHeartbeat) {
  for (const char* text : {"", "[]", "{\"pid\": \"x\"}", "\xff\xfe{"}) {
    const TempDir run;
    write_durably(run / "run.lease", text);
    EXPECT_EQ(refusal(run.path()), std::nullopt) << text;
  }
}

TEST(RunLease, WhoLostItMayNotWriteAndDoesNotRemoveTheOthers) {
  const TempDir run;
  {
    const RunLease lease(run.path(), kQuick);
    nlohmann::json other = lease_of(run.path());
    other.update(kElsewhere);
    write_durably(run / "run.lease", other.dump());
    try {
      lease.require_held();
      FAIL() << "no error";
    } catch (const Error& error) {
      EXPECT_THAT(error.message(), HasSubstr("node7"));
    }
  }
  EXPECT_TRUE(fs::exists(run / "run.lease"));
  const TempDir removed;
  const RunLease lease(removed.path(), kQuick);
  fs::remove(removed / "run.lease");
  EXPECT_THROW(lease.require_held(), Error);
}

TEST(RunLease, TheHeartbeatIsTheFilesTime) {
  const TempDir run;
  const RunLease lease(run.path(), kQuick);
  const auto before = fs::last_write_time(run / "run.lease");
  while (fs::last_write_time(run / "run.lease") == before) std::this_thread::sleep_for(milliseconds(5));
}

TEST(RunLease, AFolderThatCannotBeWrittenIsAnErrorOfIo) {
  const TempDir run;
  EXPECT_EQ(refusal(run / "nowhere")->kind(), ErrorKind::io);
}

TEST(RunLease, WhatAKilledStartWasWritingIsRemovedAndNothingElse) {
  const TempDir run;
  const std::vector<std::string> kept = {"notes.tmp-mine", "report.png.tmp-0123456789abcdef", "run.lease.tmp-0123456789abcdef"};
  write_durably(run / "pytorch_lora_weights.safetensors.tmp-0123456789abcdef", "half");
  for (const std::string& name : kept) write_durably(run / name, "");
  const RunLease lease(run.path());
  EXPECT_FALSE(std::filesystem::exists(run / "pytorch_lora_weights.safetensors.tmp-0123456789abcdef"));
  for (const std::string& name : kept) EXPECT_TRUE(std::filesystem::exists(run / name)) << name;
}

}  // namespace
}  // namespace lorashard
