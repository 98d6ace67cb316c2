#include "trainer/weights_digest.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>

#include <string>

#include "dist/agreement.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

at::Tensor weights() { return at::arange(1000, at::kFloat) / 7; }

TEST(WeightsDigest, SameBitsPass) {
  const auto communicator = make_cpu_communicator(mpi_world());
  EXPECT_NO_THROW(require_same_weights(*communicator, weights(), 100));
}

TEST(WeightsDigest, OneFlippedBitOnOneRankIsSeenByAllAndTheRankIsNamed) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const int world_size = mpi_world().world_size;
  for (int guilty = 0; guilty < world_size; ++guilty) {
    at::Tensor mine = weights();
    if (mpi_world().rank == guilty) {
      reinterpret_cast<uint32_t*>(mine.mutable_data_ptr<float>())[guilty * 300] ^= 1u;  // the last bit of one weight
    }
    std::string message;
    try {
      require_same_weights(*communicator, mine, 100);
    } catch (const AgreedError& error) {
      EXPECT_EQ(error.kind(), ErrorKind::internal);
      message = error.message();
    }
    // Of two ranks nobody can say which is right.
    const int named = world_size == 2 ? 1 : guilty;
    EXPECT_THAT(message, testing::HasSubstr("after step 100: rank " + std::to_string(named) + " (" +
                                            mpi_world().hostname + ") differs"));
  }
}

TEST(WeightsDigest, EqualNumbersOfOtherBitsDiffer) {
  const auto communicator = make_cpu_communicator(mpi_world());
  const at::Tensor mine = at::full({4}, mpi_world().rank == 1 ? -0.0 : 0.0, at::kFloat);
  EXPECT_THROW(require_same_weights(*communicator, mine, 1), AgreedError);
}

}  // namespace
}  // namespace lorashard
