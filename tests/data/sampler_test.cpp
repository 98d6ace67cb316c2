#include "data/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "dist/error.h"

namespace lorashard {
namespace {

using testing::Each;
using testing::Pair;
using testing::SizeIs;

TEST(Sampler, EveryEpochHoldsEveryRowOnceAlsoWhereMicroBatchesStraddle) {
  for (const int64_t num_samples : {1, 2, 5, 13, 64, 100}) {
    for (const int64_t train_batch_size : {1, 3, 4, 7}) {
      const Sampler sampler(11, num_samples, train_batch_size);
      std::map<int64_t, std::set<int64_t>> rows;
      const int64_t epochs = 5;
      for (int64_t m = 0; m * train_batch_size < epochs * num_samples; ++m) {
        const auto slots = sampler.micro_batch(m);
        ASSERT_THAT(slots, SizeIs(train_batch_size));
        for (int64_t i = 0; i < train_batch_size; ++i) {
          ASSERT_EQ(slots[i].slot, static_cast<uint64_t>(m * train_batch_size + i));
          ASSERT_EQ(slots[i].epoch, static_cast<int64_t>(slots[i].slot) / num_samples);
          ASSERT_TRUE(rows[slots[i].epoch].insert(slots[i].row).second)
              << "row " << slots[i].row << " twice in an epoch";
        }
      }
      for (int64_t epoch = 0; epoch < epochs; ++epoch) {
        ASSERT_THAT(rows[epoch], SizeIs(num_samples));
        ASSERT_GE(*rows[epoch].begin(), 0);
        ASSERT_LT(*rows[epoch].rbegin(), num_samples);
      }
    }
  }
}

std::vector<int64_t> order(uint64_t seed, int64_t epoch, int64_t train_batch_size) {
  const Sampler sampler(seed, 60, train_batch_size);
  std::vector<int64_t> rows;
  for (int64_t m = epoch * 60 / train_batch_size; m < (epoch + 1) * 60 / train_batch_size; ++m) {
    for (const auto& slot : sampler.micro_batch(m)) rows.push_back(slot.row);
  }
  return rows;
}

TEST(Sampler, TheOrderDependsOnSeedAndEpochAndNotOnTheBatchSize) {
  EXPECT_EQ(order(1, 0, 1), order(1, 0, 4));
  EXPECT_EQ(order(1, 3, 2), order(1, 3, 6));
  EXPECT_NE(order(1, 0, 1), order(2, 0, 1));
  EXPECT_NE(order(1, 0, 1), order(1, 1, 1));
  EXPECT_FALSE(std::ranges::is_sorted(order(1, 0, 1)));
}

TEST(MicroBatchSchedule, TheRanksShareEveryMicroBatchExactlyOnce) {
  for (int world_size = 1; world_size <= 5; ++world_size) {
    for (int64_t num_micro_batches = 1; num_micro_batches <= 7; ++num_micro_batches) {
      std::map<int64_t, int> times;
      for (int rank = 0; rank < world_size; ++rank) {
        const MicroBatchSchedule schedule(num_micro_batches, rank, world_size, 3, 9);
        ASSERT_EQ(schedule.size(), schedule.per_step() * 6);
        for (int64_t i = 0; i < schedule.size(); ++i) {
          ++times[schedule[i]];
          ASSERT_EQ(schedule[i] / num_micro_batches, 3 + i / schedule.per_step())
              << "a step's micro-batches come in that step";
          if (i > 0) {
            ASSERT_GT(schedule[i], schedule[i - 1]);
          }
        }
      }
      ASSERT_THAT(times, SizeIs(6 * num_micro_batches));
      ASSERT_THAT(
          times, Each(Pair(testing::AllOf(testing::Ge(3 * num_micro_batches), testing::Lt(9 * num_micro_batches)), 1)));
    }
  }
}

TEST(MicroBatchSchedule, NoRankRunsMoreThanOneMicroBatchMoreThanAnother) {
  for (int world_size = 1; world_size <= 5; ++world_size) {
    for (int64_t num_micro_batches = 1; num_micro_batches <= 7; ++num_micro_batches) {
      const auto per_step = [&](int rank) {
        return MicroBatchSchedule(num_micro_batches, rank, world_size, 0, 1).per_step();
      };
      EXPECT_LE(per_step(0) - per_step(world_size - 1), 1);
    }
  }
}

TEST(MicroBatchSchedule, ARankBeyondTheMicroBatchesHasNothingToDo) {
  const MicroBatchSchedule schedule(2, 3, 4, 0, 10);
  EXPECT_EQ(schedule.per_step(), 0);
  EXPECT_EQ(schedule.size(), 0);
  EXPECT_THROW(schedule[0], Error);
}

TEST(Sampler, AnEpochHasEachRowAsOftenAsItsRepeats) {
  const std::vector<int64_t> repeats = {1, 4, 1, 2};
  const Sampler sampler(3, 8, 3, /*class_images=*/false, repeats);
  for (int64_t epoch = 0; epoch < 6; ++epoch) {
    std::vector<int64_t> counts(4, 0);
    for (int64_t m = 0; m < 16; ++m)
      for (const Slot& slot : sampler.micro_batch(m))
        if (slot.epoch == epoch) ++counts[slot.row];
    EXPECT_EQ(counts, repeats);
  }
  const Sampler first(3, 5, 1, /*class_images=*/false, repeats);  // row 0, and row 1 four times
  for (int64_t m = 0; m < 20; ++m) EXPECT_LE(first.micro_batch(m)[0].row, 1);
  EXPECT_THROW(Sampler(3, 9, 1, false, repeats), Error);
}

TEST(Sampler, RepeatsOfOneChangeNothing) {
  const Sampler plain(3, 10, 2), repeated(3, 10, 2, false, std::vector<int64_t>(10, 1));
  for (int64_t m = 0; m < 20; ++m)
    for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(plain.micro_batch(m)[i].row, repeated.micro_batch(m)[i].row);
}

}  // namespace
}  // namespace lorashard
