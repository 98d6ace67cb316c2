#include "dist/heart_monitor.h"

#include <gmock/gmock.h>

namespace lorashard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::Not;

const HealthOptions kOptions{.collective_timeout_s = 60, .heartbeat_s = 1, .straggler_warning_s = 5};

// Three ranks; time goes on in heartbeats.
class Ranks {
 public:
  explicit Ranks(const HealthOptions& options = kOptions)
      : monitor({"rank 0 (a)", "rank 1 (b)", "rank 2 (c)"}, {0, 1, 2}, options, 0) {}

  // One heartbeat of those that beat, and the verdict after it.
  HeartMonitor::Verdict tick() {
    time += 1;
    for (int rank = 0; rank < 3; ++rank) {
      if (beats[rank]) monitor.beat(rank, now[rank], time);
    }
    return monitor.judge(time);
  }
  // All verdicts of the next `seconds` in one; stops at the end of the run.
  HeartMonitor::Verdict run(int seconds) {
    HeartMonitor::Verdict all;
    for (int i = 0; i < seconds && all.end.empty(); ++i) {
      HeartMonitor::Verdict verdict = tick();
      all.warnings.insert(all.warnings.end(), verdict.warnings.begin(), verdict.warnings.end());
      all.notes.insert(all.notes.end(), verdict.notes.begin(), verdict.notes.end());
      all.end = verdict.end;
    }
    return all;
  }
  void enter(int rank, Collective collective) {
    now[rank] = {now[rank].step, collective, now[rank].number + 1, now[rank].progress + 1};
  }
  void leave(int rank) { now[rank] = {now[rank].step, Collective::none, now[rank].number, now[rank].progress + 1}; }

  HeartMonitor monitor;
  double time = 0;
  Beat now[3];
  bool beats[3] = {true, true, true};
};

TEST(HeartMonitor, RanksThatBeatAndWorkAreLeftAlone) {
  Ranks ranks;
  const auto verdict = ranks.run(1000);
  EXPECT_THAT(verdict.warnings, IsEmpty());
  EXPECT_EQ(verdict.end, "");
}

TEST(HeartMonitor, LongWorkDoesNotCountAsTimeOthersWaited) {
  HealthOptions options = kOptions;
  options.work_timeout_s = 20;
  HeartMonitor monitor({"rank 0 (a)", "rank 1 (b)"}, {0, 1}, options, 0);
  const Beat waiting{.collective = Collective::all_gather, .number = 1, .progress = 1};
  std::string end;
  double time = 0;
  const auto go_on = [&](double until, bool long_work) {
    for (; time < until && end.empty(); time += 1) {
      monitor.beat(0, {.long_work = long_work}, time);
      monitor.beat(1, waiting, time);
      const auto verdict = monitor.judge(time);
      if (long_work || time < 504) {
        EXPECT_THAT(verdict.warnings, IsEmpty()) << time;
      }
      end = verdict.end;
    }
  };
  go_on(500, true);
  go_on(515, false);
  EXPECT_EQ(end, "");
  go_on(600, false);
  EXPECT_THAT(end, AllOf(HasSubstr("rank 0 (a) is lost"), HasSubstr("work_timeout_s")));
  EXPECT_LT(time, 525);
}

TEST(HeartMonitor, ARankAtLongWorkIsNotCalledLateButMustBeat) {
  Ranks ranks;
  ranks.now[0].long_work = true;
  ranks.enter(1, Collective::all_gather);
  ranks.enter(2, Collective::all_gather);
  EXPECT_THAT(ranks.run(600).warnings, IsEmpty());
  ranks.beats[0] = false;
  const auto verdict = ranks.run(600);
  EXPECT_THAT(verdict.warnings, ElementsAre(HasSubstr("rank 0 (a) is silent")));
  EXPECT_THAT(verdict.end, HasSubstr("rank 0 (a) is lost"));
}

TEST(HeartMonitor, ARankThatWorksIsWaitedForAsLongAsItTakesWithOneWarning) {
  Ranks ranks;
  ranks.enter(1, Collective::all_reduce);
  ranks.enter(2, Collective::all_reduce);
  const auto verdict = ranks.run(3600);
  EXPECT_EQ(verdict.end, "");
  EXPECT_THAT(verdict.warnings, ElementsAre(AllOf(HasSubstr("rank 0 (a) is late"), HasSubstr("all_reduce"))));

  // The next time is another episode.
  ranks.enter(0, Collective::all_reduce);
  EXPECT_THAT(ranks.run(1).notes, ElementsAre(HasSubstr("rank 0 (a) is back after 36")));
  for (int rank = 0; rank < 3; ++rank) ranks.leave(rank);
  ranks.run(1);
  ranks.enter(1, Collective::barrier);
  EXPECT_THAT(ranks.run(4).warnings, IsEmpty());
  EXPECT_THAT(ranks.run(4).warnings, ElementsAre(HasSubstr("barrier"), HasSubstr("rank 2 (c)")));
}

TEST(HeartMonitor, ARankThatBeatsButNeverComesIsLostAfterTheTimeOfItsOwn) {
  HealthOptions options = kOptions;
  options.work_timeout_s = 600;
  Ranks ranks(options);
  ranks.enter(0, Collective::all_reduce);
  ranks.enter(2, Collective::all_reduce);
  EXPECT_EQ(ranks.run(600).end, "");
  EXPECT_THAT(ranks.run(2).end, AllOf(HasSubstr("rank 1 (b) is lost: it beats"), HasSubstr("all_reduce for 60"),
                                      HasSubstr("work_timeout_s = 600"), Not(HasSubstr("rank 0"))));
}

TEST(HeartMonitor, ASilentRankIsLostAfterTheTimeoutAndNotBefore) {
  Ranks ranks;
  ranks.run(10);
  ranks.now[2].step = 7;
  for (int rank = 0; rank < 3; ++rank) ranks.enter(rank, Collective::all_reduce);
  ranks.run(1);
  ranks.beats[2] = false;
  auto verdict = ranks.run(60);
  EXPECT_EQ(verdict.end, "");
  EXPECT_THAT(verdict.warnings, ElementsAre(HasSubstr("rank 2 (c) is silent")));
  verdict = ranks.run(1);
  EXPECT_THAT(verdict.end,
              AllOf(HasSubstr("rank 2 (c) is lost"), HasSubstr("in step 7, in all_reduce"), Not(HasSubstr("rank 1"))));
}

TEST(HeartMonitor, ARankThatIsBackInTimeIsNotLost) {
  Ranks ranks;
  ranks.beats[1] = false;
  EXPECT_EQ(ranks.run(55).end, "");
  ranks.beats[1] = true;
  auto verdict = ranks.run(1);
  EXPECT_THAT(verdict.notes, ElementsAre(HasSubstr("rank 1 (b) is back after 56.0 s")));
  ranks.beats[1] = false;
  EXPECT_EQ(ranks.run(55).end, "");
}

TEST(HeartMonitor, ARankWhoseConnectionClosedIsLostAfterTheGrace) {
  Ranks ranks;
  ranks.run(1);
  ranks.beats[0] = false;
  ranks.monitor.closed(0, ranks.time);
  EXPECT_EQ(ranks.run(3).end, "");
  EXPECT_THAT(ranks.run(1).end, HasSubstr("rank 0 (a) is lost: its process is gone"));
}

TEST(HeartMonitor, ARankThatSaidGoodbyeMayBeSilent) {
  Ranks ranks;
  ranks.monitor.left(1);
  ranks.monitor.closed(1, ranks.time);
  ranks.beats[1] = false;
  const auto verdict = ranks.run(500);
  EXPECT_EQ(verdict.end, "");
  EXPECT_THAT(verdict.warnings, IsEmpty());
}

TEST(HeartMonitor, RanksThatAllWaitWithoutGettingFurtherAreStuck) {
  Ranks ranks;
  ranks.enter(0, Collective::all_reduce);
  ranks.enter(1, Collective::barrier);
  EXPECT_EQ(ranks.run(500).end, "");  // rank 2 works: it may still come
  ranks.enter(2, Collective::barrier);
  EXPECT_EQ(ranks.run(60).end, "");
  EXPECT_THAT(ranks.run(2).end, AllOf(HasSubstr("rank 0 (a): before the first step, in all_reduce"),
                                      HasSubstr("rank 1 (b): before the first step, in barrier")));
}

TEST(HeartMonitor, ALargeMessageThatGetsFurtherIsNotStuck) {
  Ranks ranks;
  for (int rank = 0; rank < 3; ++rank) ranks.enter(rank, Collective::broadcast);
  for (int piece = 0; piece < 20; ++piece) {
    EXPECT_EQ(ranks.run(50).end, "");
    ++ranks.now[piece % 3].progress;
  }
}

TEST(HeartMonitor, TheTimeAWatcherWasItselfStoppedIsNobodysSilence) {
  Ranks ranks;
  ranks.run(1);
  ranks.time += 1000;
  ranks.monitor.forgive(1000);
  const auto verdict = ranks.monitor.judge(ranks.time);
  EXPECT_EQ(verdict.end, "");
  EXPECT_THAT(verdict.warnings, IsEmpty());
}

TEST(HeartMonitor, AWatcherOfOneRankJudgesNobodyElse) {
  HeartMonitor monitor({"rank 0 (a)", "rank 1 (b)", "rank 2 (c)"}, {0}, kOptions, 0);
  for (int time = 1; time < 500; ++time) {
    monitor.beat(0, {.step = 1, .collective = Collective::all_reduce, .number = 1, .progress = 1}, time);
    EXPECT_EQ(monitor.judge(time).end, "");
  }
  EXPECT_THAT(monitor.judge(600).end, AllOf(HasSubstr("rank 0 (a) is lost"), Not(HasSubstr("rank 1"))));
}

}  // namespace
}  // namespace lorashard
