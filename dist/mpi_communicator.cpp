// The CPU communicator over MPI_COMM_WORLD, and the silent one of a world of one.
#include <ATen/ATen.h>
#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

#include "dist/activity.h"
#include "dist/communicator.h"
#include "dist/error.h"

namespace lorashard {
namespace {

// MPI counts are int. A round piece also keeps the buffers inside MPI small.
constexpr int64_t kPiece = int64_t{1} << 21;

void check(int code, const char* call, const World& world) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING];
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw Error(
      ErrorKind::rank_lost,
      fmt::format("rank {} of {}: {} failed: {}", world.rank, world.world_size, call, std::string(text, length)),
      "a rank or the network between the ranks is gone; start the run again to go on from its last checkpoint");
}

void check_flat(const at::Tensor& flat) {
  LORASHARD_CHECK(flat.defined() && flat.is_contiguous() && flat.device().is_cpu(), "expected a contiguous CPU tensor");
}

class MpiCommunicator final : public Communicator {
 public:
  explicit MpiCommunicator(const World& world) : Communicator(world) {}

  void all_reduce_sum(at::Tensor& flat) override {
    check_flat(flat);
    const InCollective here(Collective::all_reduce);
    const bool integers = flat.scalar_type() == at::kLong;
    LORASHARD_CHECK(integers || flat.scalar_type() == at::kFloat, "expected float32 or int64");
    char* bytes = static_cast<char*>(flat.mutable_data_ptr());
    for (int64_t start = 0; start < flat.numel(); start += kPiece) {
      const int count = static_cast<int>(std::min(kPiece, flat.numel() - start));
      check(MPI_Allreduce(MPI_IN_PLACE, bytes + start * static_cast<int64_t>(flat.element_size()), count,
                          integers ? MPI_INT64_T : MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD),
            "MPI_Allreduce", world_);
      got_further();
    }
  }

  void broadcast(at::Tensor& flat, int root) override {
    check_flat(flat);
    const InCollective here(Collective::broadcast);
    broadcast_bytes(static_cast<char*>(flat.mutable_data_ptr()), static_cast<int64_t>(flat.nbytes()), root);
  }

  std::vector<std::string> all_gather(const std::string& bytes) override {
    const InCollective here(Collective::all_gather);
    const int64_t size = static_cast<int64_t>(bytes.size());
    std::vector<int64_t> sizes(static_cast<size_t>(world_.world_size));
    check(MPI_Allgather(&size, 1, MPI_INT64_T, sizes.data(), 1, MPI_INT64_T, MPI_COMM_WORLD), "MPI_Allgather", world_);
    const int64_t total = std::accumulate(sizes.begin(), sizes.end(), int64_t{0});
    if (total <= kPiece) return all_gather_short(bytes, sizes, total);
    std::vector<std::string> gathered;
    for (int root = 0; root < world_.world_size; ++root) {
      std::string& piece = gathered.emplace_back(static_cast<size_t>(sizes[static_cast<size_t>(root)]), '\0');
      if (root == world_.rank) piece = bytes;
      broadcast_bytes(piece.data(), static_cast<int64_t>(piece.size()), root);
    }
    return gathered;
  }

  void barrier() override {
    const InCollective here(Collective::barrier);
    check(MPI_Barrier(MPI_COMM_WORLD), "MPI_Barrier", world_);
  }

 private:
  // A large message on a slow network is no hang.
  static void got_further() { activity().progress.fetch_add(1, std::memory_order_relaxed); }

  void broadcast_bytes(char* bytes, int64_t size, int root) {
    for (int64_t start = 0; start < size; start += kPiece) {
      const int count = static_cast<int>(std::min(kPiece, size - start));
      check(MPI_Bcast(bytes + start, count, MPI_BYTE, root, MPI_COMM_WORLD), "MPI_Bcast", world_);
      got_further();
    }
  }

  std::vector<std::string> all_gather_short(const std::string& bytes, const std::vector<int64_t>& sizes,
                                            int64_t total) {
    const std::vector<int> counts(sizes.begin(), sizes.end());
    std::vector<int> starts(counts.size());
    std::exclusive_scan(counts.begin(), counts.end(), starts.begin(), 0);
    std::string all(static_cast<size_t>(total), '\0');
    check(MPI_Allgatherv(bytes.data(), static_cast<int>(bytes.size()), MPI_BYTE, all.data(), counts.data(),
                         starts.data(), MPI_BYTE, MPI_COMM_WORLD),
          "MPI_Allgatherv", world_);
    std::vector<std::string> gathered;
    for (size_t i = 0; i < counts.size(); ++i) {
      gathered.push_back(all.substr(static_cast<size_t>(starts[i]), static_cast<size_t>(counts[i])));
    }
    return gathered;
  }
};

class LoneCommunicator final : public Communicator {
 public:
  explicit LoneCommunicator(const World& world) : Communicator(world) {}
  void all_reduce_sum(at::Tensor& flat) override { check_flat(flat); }
  void broadcast(at::Tensor& flat, int) override { check_flat(flat); }
  std::vector<std::string> all_gather(const std::string& bytes) override { return {bytes}; }
  void barrier() override {}
};

}  // namespace

std::unique_ptr<Communicator> make_cpu_communicator(const World& world) {
  if (world.world_size == 1) return std::make_unique<LoneCommunicator>(world);
  return std::make_unique<MpiCommunicator>(world);
}

}  // namespace lorashard
