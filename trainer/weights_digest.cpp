#include "trainer/weights_digest.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/sha256.h"

namespace lorashard {

void require_same_weights(Communicator& communicator, const at::Tensor& weights, int64_t step) {
  const World& world = communicator.world();
  if (world.world_size == 1) return;
  LORASHARD_CHECK(weights.is_contiguous() && weights.device().is_cpu(), "expected a contiguous CPU tensor");
  const std::string digest = sha256({static_cast<const char*>(weights.const_data_ptr()), weights.nbytes()});
  const std::vector<std::string> reports = communicator.all_gather(digest + world.hostname);
  const auto digest_of = [&](size_t rank) { return std::string_view(reports[rank]).substr(0, digest.size()); };

  size_t right = 0;
  std::ptrdiff_t most = 0;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    const auto same = std::count_if(reports.begin(), reports.end(),
                                    [&](const std::string& report) { return report.starts_with(digest_of(rank)); });
    if (same > most) std::tie(most, right) = std::make_pair(same, rank);
  }
  if (most == static_cast<std::ptrdiff_t>(reports.size())) return;
  std::string others;
  for (size_t rank = 0; rank < reports.size(); ++rank) {
    if (digest_of(rank) == digest_of(right)) continue;
    others += fmt::format("{}rank {} ({})", others.empty() ? "" : ", ", rank, reports[rank].substr(digest.size()));
  }
  const std::string against =
      2 * most > world.world_size ? fmt::format("the {} other ranks", most) : fmt::format("rank {}", right);
  throw AgreedError(
      Error(
          ErrorKind::internal,
          fmt::format("comparing the adapter's weights after step {}: {} differs from {}", step, others, against),
          "a bit flipped in memory or in a processor of that host, or a fault of lorashard; checkpoints since the last "
          "comparison may hold it: see distributed.digest_steps"),
      world);
}

}  // namespace lorashard
