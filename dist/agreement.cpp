#include "dist/agreement.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <vector>

#include "dist/error.h"
#include "dist/sha256.h"

namespace lorashard {
namespace {

// An outcome on the wire: empty for success, else kind (one character), message, NUL, hint.
std::string to_wire(const Error& error) {
  std::string wire(1, static_cast<char>('0' + static_cast<int>(error.kind())));
  return wire + error.message() + '\0' + error.hint();
}

Error from_wire(const std::string& wire, const std::string& prefix) {
  const size_t end = wire.find('\0');
  LORASHARD_CHECK(!wire.empty() && end != std::string::npos, "an outcome of {} bytes", wire.size());
  return Error(static_cast<ErrorKind>(wire[0] - '0'), prefix + wire.substr(1, end - 1), wire.substr(end + 1));
}

std::string outcome_of(const std::string& doing_what, const std::function<void()>& action) {
  try {
    action();
    return "";
  } catch (const Error& error) {
    return to_wire(error);
  } catch (const std::exception& error) {
    return to_wire(Error(ErrorKind::internal, fmt::format("{}: {}", doing_what, describe(error))));
  } catch (...) {
    return to_wire(Error(ErrorKind::internal, fmt::format("{}: an unknown exception", doing_what)));
  }
}

std::vector<std::string> lines_of(const std::string& text) {
  std::vector<std::string> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

}  // namespace

std::string first_difference(const std::string& a, const std::string& b, const std::string& where_a, const std::string& where_b) {
  const auto lines_a = lines_of(a), lines_b = lines_of(b);
  for (size_t i = 0; i < std::max(lines_a.size(), lines_b.size()); ++i) {
    const std::string line_a = i < lines_a.size() ? "'" + lines_a[i] + "'" : "nothing";
    const std::string line_b = i < lines_b.size() ? "'" + lines_b[i] + "'" : "nothing";
    if (line_a != line_b) return fmt::format("line {}: {} {}, {} {}", i + 1, line_a, where_a, line_b, where_b);
  }
  return fmt::format("the last line's end: {} bytes {}, {} {}", a.size(), where_a, b.size(), where_b);
}

void run_agreed(Communicator& communicator, const std::string& doing_what, const std::function<void()>& action) {
  const auto outcomes = communicator.all_gather(outcome_of(doing_what, action));
  for (size_t rank = 0; rank < outcomes.size(); ++rank) {
    if (outcomes[rank].empty()) continue;
    throw AgreedError(from_wire(outcomes[rank], rank == 0 ? "" : fmt::format("rank {}: ", rank)), communicator.world());
  }
}

bool any_rank(Communicator& communicator, bool mine) { return any_rank(communicator, std::vector<bool>{mine})[0]; }

std::vector<bool> any_rank(Communicator& communicator, const std::vector<bool>& mine) {
  at::Tensor counts = at::zeros({static_cast<int64_t>(mine.size())}, at::kLong);
  int64_t* count = counts.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < mine.size(); ++i) count[i] = mine[i] ? 1 : 0;
  communicator.all_reduce_sum(counts);
  return std::vector<bool>(count, count + mine.size());
}

void require_same(Communicator& communicator, const std::string& what, const std::string& value,
                  const std::string& hint) {
  // Hashes first: the values may be long, and are the same nearly always.
  const auto hashes = communicator.all_gather(sha256(value));
  std::string others;
  std::optional<size_t> first;
  for (size_t rank = 1; rank < hashes.size(); ++rank) {
    if (hashes[rank] == hashes[0]) continue;
    if (!first) first = rank;
    others += (others.empty() ? "" : ", ") + std::to_string(rank);
  }
  if (!first) return;
  const auto values = communicator.all_gather(value);
  throw AgreedError(Error(ErrorKind::usage,
                          fmt::format("{} differs between rank 0 and rank {}; first at {}", what, others,
                                      first_difference(values[0], values[*first], "on rank 0", fmt::format("on rank {}", *first))),
                          hint),
                    communicator.world());
}

}  // namespace lorashard
