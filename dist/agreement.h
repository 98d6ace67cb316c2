// How ranks agree before anyone acts: an error of any rank reaches all, and all leave by the same door.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "dist/communicator.h"
#include "dist/error.h"

namespace lorashard {

/// An Error that every rank throws at the same point: nobody is left waiting, and only one of them needs to say it.
class AgreedError : public Error {
 public:
  AgreedError(const Error& error, const World& world)
      : Error(error.kind(), error.message(), error.hint()), speaks_(world.rank == 0) {}
  /// True on the one rank that prints it.
  bool speaks() const { return speaks_; }

 private:
  bool speaks_;
};

/// Runs `action` on every rank, then exchanges the outcome: when it threw on some rank, every rank throws an AgreedError
/// with the Error of the lowest such rank (its message prefixed with "rank R: " when that isn't rank 0), so nobody waits for a rank that left.
/// Exceptions that are not Error become Error(internal). Collective.
void run_agreed(Communicator& communicator, const std::string& doing_what, const std::function<void()>& action);

/// True on every rank when `mine` is true on any. Collective.
bool any_rank(Communicator& communicator, bool mine);
/// The same for several questions in one message.
std::vector<bool> any_rank(Communicator& communicator, const std::vector<bool>& mine);

/// "line 2: 'x' there, 'y' here" of two texts that differ, with the words of where each is. No communication.
std::string first_difference(const std::string& a, const std::string& b, const std::string& where_a, const std::string& where_b);

/// Throws the same AgreedError(usage) on every rank unless `value` is the same text on all; the message names `what`, the ranks
/// and the first line that differs. Collective. For recipes, binaries, packs and bases that must match. `hint`: what to
/// do about it, where the usual one doesn't say.
void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& hint = "start every rank with the same program, recipe and files");

}  // namespace lorashard
