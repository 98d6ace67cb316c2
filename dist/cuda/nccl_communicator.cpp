#include "dist/cuda/nccl_communicator.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_runtime_api.h>
#include <nccl.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "dist/agreement.h"
#include "dist/cuda/cuda_devices.h"
#include "dist/error.h"

namespace lorashard {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kWatchInterval = std::chrono::milliseconds(100);

void check_cuda(cudaError_t code, const char* call) {
  LORASHARD_CHECK(code == cudaSuccess, "{} failed: {}", call, cudaGetErrorString(code));
}

/// One NCCL communicator and the sums under way on it, shared by the training thread and the one that watches it.
/// NCCL's calls return at once (blocking = 0), so the lock is never held for long, and whatever hangs can be aborted.
class Connection {
 public:
  Connection(const World& world, std::chrono::milliseconds timeout) : world_(world), timeout_(timeout) {}
  ~Connection() {
    for (const Sum& sum : under_way_) forget(sum);
    if (comm_ != nullptr) ncclCommAbort(comm_);
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  void open(const ncclUniqueId& id) {
    std::unique_lock lock(mutex_);
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    const ncclResult_t result = ncclCommInitRankConfig(&comm_, world_.world_size, id, world_.rank, &config);
    settle(lock, "ncclCommInitRankConfig", result);
  }

  /// Enqueues the sum on the current stream of this thread's device.
  void sum(at::Tensor& flat) {
    const cudaStream_t stream = c10::cuda::getCurrentCUDAStream(flat.get_device()).stream();
    cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
    check_cuda(cudaStreamIsCapturing(stream, &capture), "cudaStreamIsCapturing");
    const bool watched = capture == cudaStreamCaptureStatusNone;  // an event recorded in a capture can't be asked later
    std::unique_lock lock(mutex_);
    throw_if_failed();
    Sum sum;
    if (watched) {
      check_cuda(cudaEventCreateWithFlags(&sum.begun, cudaEventDisableTiming), "cudaEventCreate");
      check_cuda(cudaEventCreateWithFlags(&sum.done, cudaEventDisableTiming), "cudaEventCreate");
      check_cuda(cudaEventRecord(sum.begun, stream), "cudaEventRecord");
    }
    void* data = flat.mutable_data_ptr();
    settle(lock, "ncclAllReduce",
           ncclAllReduce(data, data, static_cast<size_t>(flat.numel()),
                         flat.scalar_type() == at::kLong ? ncclInt64 : ncclFloat32, ncclSum, comm_, stream));
    if (!watched) return;
    check_cuda(cudaEventRecord(sum.done, stream), "cudaEventRecord");
    under_way_.push_back(sum);
  }

  /// One look at NCCL's asynchronous errors and at the time the oldest sum takes. Throws what it finds, after the
  /// abort.
  void look() {
    std::unique_lock lock(mutex_);
    throw_if_failed();
    ncclResult_t state = ncclSuccess;
    const ncclResult_t asked = ncclCommGetAsyncError(comm_, &state);
    if (asked != ncclSuccess) state = asked;
    if (state != ncclSuccess && state != ncclInProgress) fail(lock, "summing over the GPUs", in_words(state));
    while (!under_way_.empty()) {
      Sum& oldest = under_way_.front();
      const cudaError_t done = cudaEventQuery(oldest.done);
      if (done == cudaErrorNotReady) {
        if (!oldest.since && cudaEventQuery(oldest.begun) == cudaSuccess) oldest.since = Clock::now();
        if (oldest.since && Clock::now() - *oldest.since > timeout_) fail(lock, "summing over the GPUs", out_of_time());
        return;
      }
      if (done != cudaSuccess) fail(lock, "summing over the GPUs", cudaGetErrorString(done));
      forget(oldest);
      under_way_.pop_front();
    }
  }

  /// Waits until nothing is under way, without blocking inside CUDA.
  void finish() {
    for (look(); !idle(); look()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

  void close() {
    std::unique_lock lock(mutex_);
    throw_if_failed();
    settle(lock, "ncclCommFinalize", ncclCommFinalize(comm_));
    ncclCommDestroy(std::exchange(comm_, nullptr));
  }

  void require_healthy() {
    const std::lock_guard lock(mutex_);
    throw_if_failed();
  }
  bool failed() const {
    const std::lock_guard lock(mutex_);
    return !failure_.empty();
  }

 private:
  struct Sum {
    cudaEvent_t begun = nullptr, done = nullptr;
    std::optional<Clock::time_point>
        since;  // when it was first seen to have begun: what the GPU did before doesn't count
  };
  using Lock = std::unique_lock<std::mutex>;

  static void forget(const Sum& sum) {
    cudaEventDestroy(sum.begun);
    cudaEventDestroy(sum.done);
  }
  bool idle() const {
    const std::lock_guard lock(mutex_);
    return under_way_.empty();
  }
  std::string out_of_time() const { return fmt::format("not done after {} ms", timeout_.count()); }
  std::string in_words(ncclResult_t result) const {
    const char* last = ncclGetLastError(comm_);
    return fmt::format("{}{}{}", ncclGetErrorString(result), last == nullptr || *last == '\0' ? "" : ": ",
                       last == nullptr ? "" : last);
  }
  Error lost() const {
    return Error(
        ErrorKind::rank_lost, failure_,
        "a rank, its GPU or the network between them is gone; start the run again to go on from its last checkpoint "
        "(NCCL_DEBUG=INFO shows what NCCL saw)");
  }
  void throw_if_failed() const {
    if (!failure_.empty()) throw lost();
  }

  /// Aborts outside the lock: should the abort itself hang, the other thread still gets the error.
  [[noreturn]] void fail(Lock& lock, const std::string& doing_what, const std::string& what) {
    failure_ =
        fmt::format("rank {} of {} on '{}': {}: {}", world_.rank, world_.world_size, world_.hostname, doing_what, what);
    const ncclComm_t comm = std::exchange(comm_, nullptr);
    const Error error = lost();
    lock.unlock();
    if (comm != nullptr) ncclCommAbort(comm);
    throw error;
  }

  /// Until the call that answered `result` is no longer in progress: no other call may come before.
  void settle(Lock& lock, const char* call, ncclResult_t result) {
    const auto deadline = Clock::now() + timeout_;
    while (result == ncclInProgress) {
      if (Clock::now() >= deadline) fail(lock, call, out_of_time());
      lock.unlock();
      std::this_thread::sleep_for(std::chrono::microseconds(20));
      lock.lock();
      throw_if_failed();
      const ncclResult_t asked = ncclCommGetAsyncError(comm_, &result);
      if (asked != ncclSuccess) result = asked;
    }
    if (result != ncclSuccess) fail(lock, call, in_words(result));
  }

  const World world_;
  const std::chrono::milliseconds timeout_;
  mutable std::mutex mutex_;
  ncclComm_t comm_ = nullptr;
  std::deque<Sum> under_way_;
  std::string failure_;
};

/// Looks at the connection until told to end or until it fails; the training thread meets the failure at its next call.
void watch(const std::stop_token& end, const std::shared_ptr<Connection>& connection, int device) {
  // A look during a capture on the training thread must not break the capture.
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
  if (cudaSetDevice(device) != cudaSuccess || cudaThreadExchangeStreamCaptureMode(&mode) != cudaSuccess) return;
  try {
    for (; !end.stop_requested(); std::this_thread::sleep_for(kWatchInterval)) connection->look();
  } catch (const Error&) {
  }
}

class NcclCommunicator final : public Communicator {
 public:
  NcclCommunicator(Communicator& control, const NcclOptions& options)
      : Communicator(control.world()),
        control_(control),
        connection_(std::make_shared<Connection>(world_, options.timeout)) {
    choose_device(options.share_devices);
    const ncclUniqueId id = exchange_id();
    run_agreed(control_, "connecting the GPUs", [&] {
      connection_->open(id);
      // Opens the connections that NCCL makes at the first use, so that no step and no capture meets them; and proves
      // them.
      at::Tensor ones = at::ones({1}, at::TensorOptions(at::kLong).device(device_tag()));
      connection_->sum(ones);
      connection_->finish();
      const int64_t sum = ones.item<int64_t>();
      LORASHARD_CHECK(sum == world_.world_size, "the sum of a one from each of {} GPUs is {}", world_.world_size, sum);
    });
    watcher_ = std::jthread(
        [connection = connection_, device = device_](const std::stop_token& end) { watch(end, connection, device); });
  }

  ~NcclCommunicator() override {
    watcher_.request_stop();
    if (connection_->failed()) {
      watcher_.detach();  // it may hang in the abort; it holds what it needs
      return;
    }
    watcher_.join();
    if (std::uncaught_exceptions() > 0) return;  // the others are not coming: the connection aborts
    try {
      connection_->close();
    } catch (const Error&) {  // closed by abort; whoever still has work to lose has met the error already
    }
  }

  void all_reduce_sum(at::Tensor& flat) override {
    LORASHARD_CHECK(flat.defined() && flat.is_contiguous() && flat.device() == device_tag(),
                    "expected a contiguous tensor on {}", device_tag().str());
    LORASHARD_CHECK(flat.scalar_type() == at::kLong || flat.scalar_type() == at::kFloat, "expected float32 or int64");
    connection_->sum(flat);
  }

  /// For the start of a run: through the CPU.
  void broadcast(at::Tensor& flat, int root) override {
    connection_->require_healthy();
    if (flat.device().is_cpu()) return control_.broadcast(flat, root);
    at::Tensor on_cpu = flat.cpu();
    control_.broadcast(on_cpu, root);
    flat.copy_(on_cpu);
  }
  std::vector<std::string> all_gather(const std::string& bytes) override {
    connection_->require_healthy();
    return control_.all_gather(bytes);
  }
  void barrier() override {
    connection_->require_healthy();
    control_.barrier();
  }

 private:
  at::Device device_tag() const { return at::Device(at::kCUDA, static_cast<c10::DeviceIndex>(device_)); }

  /// By local rank among the devices this process sees: all of the host's, or the one that Slurm gave it.
  void choose_device(bool share_devices) {
    std::string identity;
    run_agreed(control_, "choosing a GPU", [&] {
      const CudaDevices found = cuda_devices();
      if (found.devices.empty()) {
        throw Error(ErrorKind::usage, fmt::format("choosing a GPU on '{}': {}", world_.hostname, found.why_none),
                    "lorashard doctor says what this machine offers");
      }
      device_ = world_.local_rank % static_cast<int>(found.devices.size());
      at::globalContext().lazyInitDevice(at::kCUDA);
      c10::cuda::set_device(static_cast<c10::DeviceIndex>(device_));
      cudaDeviceProp properties = {};
      check_cuda(cudaGetDeviceProperties(&properties, device_), "cudaGetDeviceProperties");
      identity =
          fmt::format("{} {}", world_.hostname, std::string(properties.uuid.bytes, sizeof properties.uuid.bytes));
    });
    if (share_devices) return;
    const std::vector<std::string> identities = control_.all_gather(identity);
    run_agreed(control_, "choosing a GPU", [&] {
      const auto first = std::find(identities.begin(), identities.end(), identity) - identities.begin();
      if (first == world_.rank) return;
      throw Error(ErrorKind::usage,
                  fmt::format("choosing a GPU on '{}': ranks {} and {} would share device {}", world_.hostname, first,
                              world_.rank, device_),
                  "start one rank for each GPU");
    });
  }

  ncclUniqueId exchange_id() {
    std::string bytes;
    run_agreed(control_, "making NCCL's id", [&] {
      if (world_.rank != 0) return;
      ncclUniqueId id;
      const ncclResult_t result = ncclGetUniqueId(&id);
      if (result != ncclSuccess) {
        throw Error(ErrorKind::rank_lost, fmt::format("making NCCL's id: {}", ncclGetErrorString(result)),
                    "NCCL found no network interface to use; NCCL_SOCKET_IFNAME names one");
      }
      bytes.assign(id.internal, sizeof id.internal);
    });
    bytes = control_.all_gather(bytes)[0];
    ncclUniqueId id;
    LORASHARD_CHECK(bytes.size() == sizeof id.internal, "NCCL's id has {} bytes", bytes.size());
    std::memcpy(id.internal, bytes.data(), bytes.size());
    return id;
  }

  Communicator& control_;
  std::shared_ptr<Connection> connection_;
  int device_ = 0;
  std::jthread watcher_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl_communicator(Communicator& control, const NcclOptions& options) {
  return std::make_unique<NcclCommunicator>(control, options);
}

}  // namespace lorashard
