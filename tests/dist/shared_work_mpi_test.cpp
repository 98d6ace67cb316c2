#include "dist/shared_work.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <numeric>
#include <string>
#include <vector>

#include "dist/agreement.h"
#include "dist/error.h"
#include "tests/support/mpi_world.h"

namespace lorashard {
namespace {

std::vector<int64_t> first(int64_t count) {
  std::vector<int64_t> items(static_cast<size_t>(count));
  std::iota(items.begin(), items.end(), 0);
  return items;
}

/// How often each item was finished, over all ranks.
std::map<std::string, int> times_done(Communicator& communicator, const std::vector<int64_t>& mine) {
  std::string text;
  for (const int64_t item : mine) text += std::to_string(item) + " ";
  std::map<std::string, int> times;
  for (const std::string& of_rank : communicator.all_gather(text)) {
    for (size_t begin = 0, end = 0; (end = of_rank.find(' ', begin)) != std::string::npos; begin = end + 1) {
      ++times[of_rank.substr(begin, end - begin)];
    }
  }
  return times;
}

TEST(SharedWork, EveryItemIsFinishedOnceByOneRankHoweverManyPiecesItHas) {
  const auto communicator = make_cpu_communicator(mpi_world());
  for (const int64_t count : {0, 1, 10}) {
    std::map<int64_t, int> pieces;
    std::vector<int64_t> mine;
    // A round of no time at all still does one piece: it must not go on for ever.
    share_work(*communicator,
               {.doing_what = "counting", .items = first(count), .num_pieces = 3 * count, .round_s = 1e-9},
               [&](int64_t item) {
                 if (++pieces[item] < 3) return false;
                 mine.push_back(item);
                 return true;
               });
    EXPECT_TRUE(std::ranges::all_of(pieces, [](const auto& p) { return p.second == 3; }));
    const auto times = times_done(*communicator, mine);
    EXPECT_EQ(times.size(), static_cast<size_t>(count));
    EXPECT_TRUE(std::ranges::all_of(times, [](const auto& t) { return t.second == 1; }));
  }
}

TEST(SharedWork, AnErrorOfOneRankEndsTheWorkOnAllWhileTheOthersStillHaveSome) {
  const auto communicator = make_cpu_communicator(mpi_world());
  int64_t done = 0;
  try {
    share_work(*communicator, {.doing_what = "encoding", .items = first(1000), .round_s = 0.001}, [&](int64_t item) {
      if (item == 1) throw Error(ErrorKind::bad_data, "picture 'b.png' is broken");
      ++done;
      return true;
    });
    ADD_FAILURE() << "nothing was thrown";
  } catch (const AgreedError& error) {
    EXPECT_EQ(error.kind(), ErrorKind::bad_data);
    EXPECT_NE(error.message().find("picture 'b.png' is broken"), std::string::npos) << error.message();
  }
  EXPECT_LT(done, 1000);
}

}  // namespace
}  // namespace lorashard
