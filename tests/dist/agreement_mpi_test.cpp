#include "dist/agreement.h"

#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "dist/error.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

AgreedError caught(const std::function<void()>& action) {
  try {
    action();
  } catch (const AgreedError& error) {
    return error;
  }
  return {Error(ErrorKind::internal, "nothing was thrown"), mpi_world()};
}

TEST(Agreement, AnActionThatSucceedsEverywhereThrowsNowhere) {
  const auto communicator = make_cpu_communicator(mpi_world());
  int done = 0;
  EXPECT_NO_THROW(run_agreed(*communicator, "counting", [&] { ++done; }));
  EXPECT_EQ(done, 1);
}

TEST(Agreement, AnErrorOfOneRankReachesAllWithItsKindAndHint) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (int guilty = 0; guilty < mpi_world().world_size; ++guilty) {
    const AgreedError error = caught([&] {
      run_agreed(*communicator, "opening", [&] {
        if (mpi_world().rank == guilty) throw Error(ErrorKind::bad_data, "shard 'x' is short", "pack again");
      });
    });
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_EQ(error.hint(), "pack again");
    const std::string prefix = guilty == 0 ? "" : "rank " + std::to_string(guilty) + ": ";
    EXPECT_EQ(error.message(), prefix + "shard 'x' is short");
    EXPECT_EQ(error.speaks(), mpi_world().rank == 0) << "one rank prints it, for all";
  }
}

TEST(Agreement, TheLowestRankSpeaksWhenSeveralFail) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const AgreedError error = caught([&] {
    run_agreed(*communicator, "saving", [&] {
      if (mpi_world().rank >= 1) throw std::runtime_error("rank " + std::to_string(mpi_world().rank) + " fell");
    });
  });
  EXPECT_EQ(error.kind(), ErrorKind::internal);
  EXPECT_EQ(error.message(), "rank 1: saving: rank 1 fell");
}

TEST(Agreement, WhatIsNoExceptionOfTheLibraryStillReachesAll) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const AgreedError error = caught([&] {
    run_agreed(*communicator, "juggling", [] {
      if (mpi_world().rank == 0) throw 7;
    });
  });
  EXPECT_EQ(error.kind(), ErrorKind::internal);
  EXPECT_NE(error.message().find("juggling"), std::string::npos);
}

TEST(Agreement, AnyRankIsTrueOnAllWhenOneSaysSo) {
  const auto communicator = make_cpu_communicator(mpi_world());
  EXPECT_FALSE(any_rank(*communicator, false));
  EXPECT_TRUE(any_rank(*communicator, true));
  for (int rank = 0; rank < mpi_world().world_size; ++rank) {
    EXPECT_TRUE(any_rank(*communicator, mpi_world().rank == rank)) << rank;
  }
}

TEST(Agreement, EqualValuesPass) {
  const auto communicator = make_cpu_communicator(mpi_world());
  EXPECT_NO_THROW(require_same(*communicator, "the recipe", ""));
  EXPECT_NO_THROW(require_same(*communicator, "the recipe", "seed = 1\nrank = 4\n"));
}

TEST(Agreement, ADifferentValueIsRefusedOnAllRanksWithRankAndLine) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const int last = mpi_world().world_size - 1;
  const std::string value = mpi_world().rank == last ? "seed = 1\nrank = 8\n" : "seed = 1\nrank = 4\n";
  const AgreedError error = caught([&] { require_same(*communicator, "the recipe", value); });
  EXPECT_EQ(error.kind(), ErrorKind::usage);
  const std::string name = std::to_string(last);
  EXPECT_EQ(error.message(), "the recipe differs between rank 0 and rank " + name +
                                 "; first at line 2: 'rank = 4' on rank 0, 'rank = 8' on rank " + name);
}

TEST(Agreement, AMissingLineOrLineEndIsNamed) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const bool zero = mpi_world().rank == 0;
  AgreedError error = caught([&] { require_same(*communicator, "the pack", zero ? "a\nb" : "a"); });
  EXPECT_NE(error.message().find("line 2: 'b' on rank 0, nothing on rank 1"), std::string::npos) << error.message();
  error = caught([&] { require_same(*communicator, "the pack", zero ? "a\n" : "a"); });
  EXPECT_NE(error.message().find("2 bytes on rank 0, 1 on rank 1"), std::string::npos) << error.message();
}

}  // namespace
}  // namespace lorashard
