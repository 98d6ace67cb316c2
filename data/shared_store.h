// Stores (data/tensor_store) that all ranks fill together: what is missing of them is listed, shared among them and written, then all
// open them.
// Called by trainer/latent_cache and trainer/text_cache.
#pragma once
#include <functional>
#include <span>
#include <string>

#include "data/tensor_store.h"
#include "dist/communicator.h"

namespace lorashard {

/// For the log and for errors.
struct SharedStoreWords {
  std::string contents;  ///< "cached latents"
  std::string making;    ///< "encoding the pictures"
  std::string announce;  ///< "caching the latents of 12 pictures", said once where anything is missing
};

/// Opens `stores`, of one folder, after making what is missing of them: `piece(store, shard)` is called again and again until that shard is
/// written and it returns true (see share_work()). Collective. Throws what share_work() and TensorStore throw, on every rank.
void open_shared_stores(Communicator& communicator, std::span<TensorStore> stores, const SharedStoreWords& words,
                        const std::function<bool(const TensorStore& store, int64_t shard)>& piece);

}  // namespace lorashard
