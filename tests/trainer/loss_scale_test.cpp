#include "trainer/loss_scale.h"

#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(LossScale, HalvesOnceForEachSkippedStep) {
  LossScale scale(true, 65536, 2000);
  EXPECT_EQ(scale.value(), 65536);
  scale.update(/*skipped=*/true);
  EXPECT_EQ(scale.value(), 32768);
  scale.update(true);
  EXPECT_EQ(scale.value(), 16384);
}

TEST(LossScale, DoublesAfterEachGrowthIntervalOfCleanSteps) {
  LossScale scale(true, 8, 2000);
  for (int step = 0; step < 1999; ++step) scale.update(false);
  EXPECT_EQ(scale.value(), 8);
  scale.update(false);
  EXPECT_EQ(scale.value(), 16);
  for (int step = 0; step < 2000; ++step) scale.update(false);
  EXPECT_EQ(scale.value(), 32);
}

TEST(LossScale, ASkippedStepStartsTheCountAnew) {
  LossScale scale(true, 8, 3);
  scale.update(false);
  scale.update(false);
  scale.update(true);
  EXPECT_EQ(scale.value(), 4);
  scale.update(false);
  scale.update(false);
  EXPECT_EQ(scale.value(), 4);
  scale.update(false);
  EXPECT_EQ(scale.value(), 8);
}

TEST(LossScale, IsExhaustedBelowOne) {
  LossScale scale(true, 2, 2000);
  scale.update(true);
  EXPECT_FALSE(scale.exhausted());
  scale.update(true);
  EXPECT_TRUE(scale.exhausted());
}

TEST(LossScale, WithoutFp16IsOneForEver) {
  LossScale scale(false, 65536, 1);
  for (const bool skipped : {true, false, true}) {
    scale.update(skipped);
    EXPECT_EQ(scale.value(), 1);
  }
  EXPECT_FALSE(scale.exhausted());
}

TEST(LossScale, GoesOnWhereItWas) {
  LossScale scale(true, 65536, 5), resumed(true, 65536, 5);
  for (const bool skipped : {true, false, false, false}) scale.update(skipped);
  resumed.restore(scale.value(), scale.clean_steps());
  for (int step = 0; step < 7; ++step) {
    scale.update(false);
    resumed.update(false);
    EXPECT_EQ(resumed.value(), scale.value()) << step;
  }
  EXPECT_EQ(scale.value(), 131072);
}

TEST(LossScale, RefusesWhatNoCheckpointHolds) {
  LossScale scale(true, 65536, 5);
  EXPECT_THROW(scale.restore(3, 0), Error);
  EXPECT_THROW(scale.restore(0, 0), Error);
  EXPECT_THROW(scale.restore(8, -1), Error);
  EXPECT_THROW(scale.restore(8, 5), Error);
}

}  // namespace
}  // namespace lorashard
