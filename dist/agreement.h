// How ranks agree before anyone acts: an error of any rank reaches all, and all leave by the same door.
#pragma once
#include <functional>
#include <string>

#include "dist/communicator.h"

namespace lorashard {

/// Runs `action` on every rank, then exchanges the outcome: when it threw on some rank, every rank throws the Error
/// of the lowest such rank (its message prefixed with "rank R: " on the others), so nobody waits for a rank that left.
/// Exceptions that are not Error become Error(internal). Collective.
void run_agreed(Communicator& communicator, const std::string& doing_what, const std::function<void()>& action);

/// True on every rank when `mine` is true on any. Collective.
bool any_rank(Communicator& communicator, bool mine);

/// Throws the same Error(usage) on every rank unless `value` is the same text on all; the message names `what`, the ranks
/// and the first line that differs. Collective. For recipes, binaries, packs and bases that must match.
void require_same(Communicator& communicator, const std::string& what, const std::string& value);

}  // namespace lorashard
