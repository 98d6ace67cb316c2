#include "data/shared_store.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>

#include "dist/agreement.h"
#include "dist/log.h"
#include "dist/shared_work.h"

namespace lorashard {

void open_shared_store(Communicator& communicator, TensorStore& store, const SharedStoreWords& words,
                       const std::function<bool(int64_t shard)>& piece) {
  SharedWork work{.doing_what = words.making, .pieces_per_item = TensorStore::kRowsPerShard};
  run_agreed(communicator, fmt::format("looking for {}", words.contents), [&] { work.items = store.missing(); });
  require_same(communicator, fmt::format("the list of {}", words.contents), fmt::format("{}", fmt::join(work.items, " ")));
  if (!work.items.empty()) {
    log::info("{} in '{}'", words.announce, store.folder().string());
    run_agreed(communicator, "making the cache's folder", [&] {
      if (communicator.world().rank == 0) std::filesystem::create_directories(store.folder());
    });
    share_work(communicator, work, piece);
  }
  run_agreed(communicator, fmt::format("opening {}", words.contents), [&] { store.open(); });
}

}  // namespace lorashard
