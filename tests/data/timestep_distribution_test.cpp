#include "data/timestep_distribution.h"

#include <gtest/gtest.h>

#include "dist/error.h"

namespace lorashard {
namespace {

TEST(TimestepDistribution, WithoutOptionsIsAUniformInteger) {
  const TimestepDistribution distribution({.num_train_timesteps = 1000});
  for (uint64_t slot = 0; slot < 1000; ++slot)
    EXPECT_EQ(distribution.draw(3, slot), uniform_int(3, slot, Purpose::timestep, 1000));
}

TEST(TimestepDistribution, StaysInItsRangeAndReachesItsEnds) {
  const TimestepDistribution distribution({.min_timestep = 7, .max_timestep = 11, .bias_strategy = "earlier",
                                           .bias_multiplier = 1e-3, .bias_portion = 0.009});
  std::array<int, 1000> counts{};
  for (uint64_t slot = 0; slot < 4000; ++slot) ++counts[distribution.draw(3, slot)];
  EXPECT_EQ(counts[9] + counts[10] + counts[7] + counts[8], 4000);
  EXPECT_GT(counts[9], 1800);
  EXPECT_GT(counts[10], 1800);
  EXPECT_LT(counts[7] + counts[8], 40);
}

TEST(TimestepDistribution, NamesTheKeyOfARangeOutsideTheSchedule) {
  const auto message = [](const TimestepOptions& options) {
    try {
      const TimestepDistribution distribution(options);
    } catch (const Error& error) {
      return std::string(error.kind() == ErrorKind::usage ? error.message() : "");
    }
    return std::string("no error");
  };
  EXPECT_NE(message({.max_timestep = 1001}).find("timesteps.max_timestep' = 1001"), std::string::npos);
  EXPECT_NE(message({.min_timestep = 500, .max_timestep = 500}).find("timesteps.min_timestep"), std::string::npos);
  EXPECT_NE(message({.bias_strategy = "range", .bias_begin = 5, .bias_end = 2000}).find("bias_end' = 2000"),
            std::string::npos);
}

}  // namespace
}  // namespace lorashard
