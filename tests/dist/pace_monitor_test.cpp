#include "dist/pace_monitor.h"

#include <gmock/gmock.h>

namespace lorashard {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Three ranks that take steps; `seconds` is each one's time for a micro-batch.
class Ranks {
 public:
  explicit Ranks(double slow_pace = 1.5) : monitor({"rank 0 (a)", "rank 1 (b)", "rank 2 (c)"}, slow_pace) {}

  // All that was said in the next `steps`; a heartbeat every `steps_a_beat`.
  std::vector<std::string> run(int steps, int steps_a_beat = 1) {
    std::vector<std::string> said;
    for (int i = 1; i <= steps; ++i) {
      for (int rank = 0; rank < 3; ++rank) {
        ++beats[rank].step;
        beats[rank].micro_batches += share[rank];
        beats[rank].work_us += static_cast<int64_t>(seconds[rank] * share[rank] * 1e6);
        if (i % steps_a_beat == 0) monitor.beat(rank, beats[rank]);
      }
      for (const std::string& text : monitor.judge()) said.push_back(text);
    }
    return said;
  }

  PaceMonitor monitor;
  Beat beats[3];
  double seconds[3] = {0.06, 0.06, 0.06};
  int share[3] = {1, 1, 1};
};

TEST(PaceMonitor, RanksOfOnePaceAreNotSpokenOf) {
  Ranks ranks;
  ranks.seconds[1] = 0.08;
  EXPECT_THAT(ranks.run(500), IsEmpty());
}

TEST(PaceMonitor, ARankSlowerByAFifthOfASecondIsNamedOnceWithinTwentySteps) {
  for (const int steps_a_beat : {1, 3, 4}) {
    Ranks ranks;
    ranks.seconds[2] = 0.26;
    EXPECT_THAT(ranks.run(20, steps_a_beat),
                ElementsAre(AllOf(HasSubstr("rank 2 (c) is slow"), HasSubstr("0.260 s, the others 0.060 s"),
                                  HasSubstr("0.200 s for it in every step"))));
    EXPECT_THAT(ranks.run(200, steps_a_beat), IsEmpty());
  }
}

TEST(PaceMonitor, ARankThatBecomesSlowLaterIsNamedAndToldWhenItIsFastAgain) {
  Ranks ranks;
  ASSERT_THAT(ranks.run(55), IsEmpty());
  ranks.seconds[1] = 0.5;
  EXPECT_THAT(ranks.run(20), ElementsAre(HasSubstr("rank 1 (b) is slow")));
  ranks.seconds[1] = 0.06;
  EXPECT_THAT(ranks.run(25), ElementsAre(HasSubstr("rank 1 (b) is as fast as the others again")));
}

TEST(PaceMonitor, MoreMicroBatchesAreNotSlownessAndNoneIsNoPace) {
  Ranks ranks;
  ranks.share[0] = 3;
  ranks.share[2] = 0;
  EXPECT_THAT(ranks.run(100), IsEmpty());
  ranks.seconds[1] = 0.2;
  EXPECT_THAT(ranks.run(20), ElementsAre(HasSubstr("rank 1 (b) is slow")));
}

TEST(PaceMonitor, TheFirstStepWarmsUpAndDoesNotCount) {
  Ranks ranks;
  ranks.seconds[0] = 30;
  ranks.run(1);
  ranks.seconds[0] = 0.06;
  EXPECT_THAT(ranks.run(100), IsEmpty());
}

TEST(PaceMonitor, ZeroSaysNothing) {
  Ranks ranks(0);
  ranks.seconds[2] = 9;
  EXPECT_THAT(ranks.run(100), IsEmpty());
}

}  // namespace
}  // namespace lorashard
