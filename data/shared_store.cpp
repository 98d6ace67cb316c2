#include "data/shared_store.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <utility>
#include <vector>

#include "dist/agreement.h"
#include "dist/log.h"
#include "dist/shared_work.h"

namespace lorashard {

void open_shared_stores(Communicator& communicator, std::span<TensorStore> stores, const SharedStoreWords& words,
                        const std::function<bool(const TensorStore& store, int64_t shard)>& piece) {
  std::vector<std::pair<const TensorStore*, int64_t>> shards;  // of all stores
  for (const TensorStore& store : stores) {
    for (int64_t shard = 0; shard < store.num_shards(); ++shard) shards.emplace_back(&store, shard);
  }
  SharedWork work{.doing_what = words.making};
  run_agreed(communicator, fmt::format("looking for {}", words.contents), [&] {
    int64_t first = 0;  // of the store, in `shards`
    for (const TensorStore& store : stores) {
      for (const int64_t shard : store.missing()) {
        work.items.push_back(first + shard);
        work.num_pieces += store.rows_of(shard);
      }
      first += store.num_shards();
    }
  });
  require_same(communicator, fmt::format("the list of {}", words.contents), fmt::format("{}", fmt::join(work.items, " ")));
  if (!work.items.empty()) {
    const std::filesystem::path& folder = stores[0].folder();
    log::info("{} in '{}'", words.announce, (stores.size() == 1 ? folder : folder.parent_path()).string());
    run_agreed(communicator, "making the cache's folder", [&] {
      if (communicator.world().rank != 0) return;
      for (const TensorStore& store : stores) std::filesystem::create_directories(store.folder());
    });
    share_work(communicator, work, [&](int64_t item) {
      const auto& [store, shard] = shards[static_cast<size_t>(item)];
      return piece(*store, shard);
    });
  }
  run_agreed(communicator, fmt::format("opening {}", words.contents), [&] {
    for (TensorStore& store : stores) store.open();
  });
}

}  // namespace lorashard
