#include "trainer/lr_scheduler.h"

#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(LrScheduler, WarmupRisesFromZeroToTheBaseRate) {
  for (const char* name : {"constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"}) {
    const LrSchedulerOptions options{.name = name, .warmup_steps = 4, .max_train_steps = 20};
    EXPECT_EQ(learning_rate(options, 0.5, 0), 0.0) << name;
    EXPECT_EQ(learning_rate(options, 0.5, 1), 0.125) << name;
    EXPECT_EQ(learning_rate(options, 0.5, 4), 0.5) << name;
  }
}

TEST(LrScheduler, ConstantIgnoresWarmup) {
  EXPECT_EQ(learning_rate({.name = "constant", .warmup_steps = 100}, 0.25, 0), 0.25);
}

TEST(LrScheduler, PolynomialNeedsABaseRateAboveItsEnd) {
  const LrSchedulerOptions options{.name = "polynomial", .max_train_steps = 10};
  EXPECT_THROW(
      {
        try {
          learning_rate(options, 1e-7, 0);
        } catch (const Error& error) {
          EXPECT_EQ(error.kind(), ErrorKind::usage);
          throw;
        }
      },
      Error);
}

TEST(LrScheduler, PolynomialThatIsAllWarmupEndsAtItsEndRate) {
  const LrSchedulerOptions options{.name = "polynomial", .warmup_steps = 10, .max_train_steps = 10};
  EXPECT_EQ(learning_rate(options, 0.5, 9), 0.5 * 0.9);
  EXPECT_DOUBLE_EQ(learning_rate(options, 0.5, 10), 1e-7);
}

TEST(LrScheduler, AnUnknownNameIsNamedWithTheKnownOnes) {
  try {
    learning_rate({.name = "cosin"}, 1.0, 0);
    FAIL();
  } catch (const Error& error) {
    EXPECT_EQ(error.kind(), ErrorKind::usage);
    EXPECT_NE(error.message().find("'cosin'"), std::string::npos);
    EXPECT_NE(error.message().find("cosine_with_restarts"), std::string::npos);
  }
}

}  // namespace
}  // namespace lorashard
