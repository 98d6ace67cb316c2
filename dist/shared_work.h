// Long work that the ranks share before or beside training: pictures to encode, pictures to make. In rounds of a few
// seconds, so that no rank waits long inside a collective, an error of any rank ends the work on all, a request to stop
// is heard, and everybody knows how far it is.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dist/communicator.h"

namespace lorashard {

struct SharedWork {
  std::string doing_what;        ///< "encoding the pictures", for the log and for errors
  std::vector<int64_t> items = {};  ///< the same on every rank; item `i` of the list is done by rank i mod world_size
  int64_t num_pieces = 0;        ///< of all items, for the progress in the log; 0: one an item
  double round_s = 2;            ///< how long a rank works before the ranks agree; a piece is never cut
};

/// Calls `piece(item)` for this rank's items in order, again and again until it returns true: the item is done. A piece is what can't be
/// interrupted (one picture). Rank 0 logs the progress every ten seconds. Throws AgreedError on every rank: that of a piece, or
/// Error(stopped) after a stop request. Collective; all items are done on return.
void share_work(Communicator& communicator, const SharedWork& work, const std::function<bool(int64_t item)>& piece);

}  // namespace lorashard
