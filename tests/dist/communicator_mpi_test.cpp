#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

TEST(Communicator, TheWorldIsTheOneThatMpirunStarted) {
  const World world = mpi_world();
  EXPECT_EQ(std::to_string(world.world_size), std::getenv("OMPI_COMM_WORLD_SIZE"));
  EXPECT_EQ(std::to_string(world.rank), std::getenv("OMPI_COMM_WORLD_RANK"));
  EXPECT_EQ(std::to_string(world.local_rank), std::getenv("OMPI_COMM_WORLD_LOCAL_RANK"));
  EXPECT_EQ(std::to_string(world.local_world_size), std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE"));
  EXPECT_FALSE(world.hostname.empty());
}

TEST(Communicator, SumsIntegersOverRanksInAnySize) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const int64_t ranks = mpi_world().world_size, rank = mpi_world().rank;
  // 2^21 + 5 crosses the border between two messages.
  for (const int64_t size : {int64_t{0}, int64_t{1}, int64_t{1000}, (int64_t{1} << 21) + 5}) {
    at::Tensor flat = at::arange(size, at::kLong) + rank * (int64_t{1} << 40);
    communicator->all_reduce_sum(flat);
    const at::Tensor expected = at::arange(size, at::kLong) * ranks + ranks * (ranks - 1) / 2 * (int64_t{1} << 40);
    EXPECT_TRUE(at::equal(flat, expected)) << size;
  }
}

TEST(Communicator, FloatSumsHaveTheSameBitsOnEveryRank) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (const int64_t size : {int64_t{7}, int64_t{5000}, int64_t{300000}}) {
    at::Tensor flat = at::sin(at::arange(size, at::kDouble) * (mpi_world().rank + 1)).to(at::kFloat);
    communicator->all_reduce_sum(flat);
    const std::string bits(static_cast<const char*>(flat.const_data_ptr()), flat.nbytes());
    for (const std::string& other : communicator->all_gather(bits)) EXPECT_TRUE(other == bits) << size;
  }
}

TEST(Communicator, BroadcastsFromAnyRoot) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (int root = 0; root < mpi_world().world_size; ++root) {
    at::Tensor flat = at::full({1000}, mpi_world().rank, at::kDouble);
    communicator->broadcast(flat, root);
    EXPECT_TRUE(at::equal(flat, at::full({1000}, root, at::kDouble))) << root;
  }
}

TEST(Communicator, GathersBytesOfDifferentSizesInRankOrder) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const auto piece = [](int rank) { return std::string(static_cast<size_t>(rank * 5), '\0') + std::to_string(rank); };
  const auto gathered = communicator->all_gather(piece(mpi_world().rank));
  ASSERT_EQ(gathered.size(), static_cast<size_t>(mpi_world().world_size));
  for (int rank = 0; rank < mpi_world().world_size; ++rank) EXPECT_EQ(gathered[static_cast<size_t>(rank)], piece(rank));
}

TEST(Communicator, GathersWhatIsTooLongForOneMessage) {
  const auto communicator = make_cpu_communicator(mpi_world());
  // 2.2 MB on rank 0, more than one message holds; nothing on rank 1.
  const auto piece = [](int rank) { return std::string(rank == 0 ? 2200000 : static_cast<size_t>(rank - 1), 'a'); };
  const auto gathered = communicator->all_gather(piece(mpi_world().rank));
  for (int rank = 0; rank < mpi_world().world_size; ++rank) {
    EXPECT_TRUE(gathered[static_cast<size_t>(rank)] == piece(rank)) << rank;
  }
}

TEST(Communicator, BarriersLetAllThrough) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (int i = 0; i < 3; ++i) EXPECT_NO_THROW(communicator->barrier());
}

}  // namespace
}  // namespace lorashard
