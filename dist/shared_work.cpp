#include "dist/shared_work.h"

#include <fmt/format.h>

#include <charconv>
#include <chrono>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/stop_request.h"

namespace lorashard {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLogInterval = std::chrono::seconds(10);

/// How many pieces all ranks have done. Collective.
int64_t pieces_of_all(Communicator& communicator, int64_t mine) {
  int64_t sum = 0;
  for (const std::string& text : communicator.all_gather(std::to_string(mine))) {
    int64_t count = 0;
    std::from_chars(text.data(), text.data() + text.size(), count);
    sum += count;
  }
  return sum;
}

}  // namespace

void share_work(Communicator& communicator, const SharedWork& work, const std::function<bool(int64_t item)>& piece) {
  const World& world = communicator.world();
  const auto count = static_cast<int64_t>(work.items.size());
  const auto round = std::chrono::duration<double>(work.round_s);
  int64_t next = world.rank, pieces = 0;
  Clock::time_point logged = Clock::now();
  while (true) {
    run_agreed(communicator, work.doing_what, [&] {
      const Clock::time_point begin = Clock::now();
      while (next < count && !stop_requested()) {
        if (piece(work.items[static_cast<size_t>(next)])) next += world.world_size;
        ++pieces;
        if (Clock::now() - begin >= round) return;
      }
    });
    const auto any = any_rank(communicator, {next < count, stop_requested()});
    if (!any[0]) return;
    const int64_t done = pieces_of_all(communicator, pieces), total = work.num_pieces > 0 ? work.num_pieces : count;
    if (any[1]) {
      throw AgreedError(Error(ErrorKind::stopped, fmt::format("{}: stopped on request after {} of {}", work.doing_what, done, total),
                              "start the same command again to go on; what is done is kept"),
                        world);
    }
    if (world.rank == 0 && Clock::now() - logged >= kLogInterval) {
      logged = Clock::now();
      log::info("{}: {} of {}", work.doing_what, done, total);
    }
  }
}

}  // namespace lorashard
