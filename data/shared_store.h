// A data/tensor_store that all ranks fill together: what is missing of it is listed, shared among them and written, then all open it.
// Called by trainer/latent_cache and trainer/text_cache.
#pragma once
#include <functional>
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

/// Opens `store` after making what is missing of it: `piece(shard)` is called again and again until the shard is written and it returns
/// true (see share_work()). Collective. Throws what share_work() and TensorStore throw, on every rank.
void open_shared_store(Communicator& communicator, TensorStore& store, const SharedStoreWords& words,
                       const std::function<bool(int64_t shard)>& piece);

}  // namespace lorashard
