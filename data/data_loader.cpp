#include "data/data_loader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <optional>
#include <stop_token>
#include <thread>
#include <utility>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

// The threads of the loader write through data pointers only: an at:: operation could start a pool of OpenMP threads in
// each.
void fill_normal_slot(at::Tensor& tensor, int64_t i, uint64_t seed, uint64_t slot, Purpose purpose) {
  const auto count = static_cast<size_t>(tensor.numel() / tensor.size(0));
  fill_normal({tensor.mutable_data_ptr<float>() + i * count, count}, seed, slot, purpose);
}

Batch make_batch(const Pack& pack, const DataLoaderOptions& options, const Sampler& sampler, int64_t micro_batch) {
  const auto slots = sampler.micro_batch(micro_batch);
  const auto size = static_cast<int64_t>(slots.size());
  const int64_t side = options.transform.resolution;
  const std::vector<int64_t> latent_shape{size, options.latent_channels, options.latent_height, options.latent_width};
  Batch batch;
  batch.micro_batch = micro_batch;
  batch.pixel_values = at::empty({size, 3, side, side}, at::kFloat);
  batch.vae_noise = at::empty(latent_shape, at::kFloat);
  batch.noise = at::empty(latent_shape, at::kFloat);
  batch.timesteps = at::empty({size}, at::kLong);
  for (int64_t i = 0; i < size; ++i) {
    const auto [slot, row, epoch] = slots[i];
    const Image image = decode_image(pack.read_image(row), pack.file_name(row));
    const bool drop =
        options.caption_dropout > 0 && uniform(options.seed, slot, Purpose::caption_dropout) < options.caption_dropout;
    batch.slots.push_back(slot);
    batch.sample_ids.push_back(row);
    batch.captions.push_back(drop ? "" : pack.caption(row));
    batch.images.push_back(transform_image(image, options.transform, options.seed, slot, false, batch.pixel_values[i]));
    fill_normal_slot(batch.vae_noise, i, options.seed, slot, Purpose::vae_sample);
    fill_normal_slot(batch.noise, i, options.seed, slot, Purpose::noise);
    batch.timesteps.mutable_data_ptr<int64_t>()[i] =
        uniform_int(options.seed, slot, Purpose::timestep, options.num_train_timesteps);
  }
  if (options.tokenize) batch.input_ids = options.tokenize(batch.captions);
  if (options.tokenize_2) batch.input_ids_2 = options.tokenize_2(batch.captions);
  return batch;
}

}  // namespace

struct DataLoader::Impl {
  Impl(const Pack& pack_in, const DataLoaderOptions& options_in, MicroBatchSchedule schedule_in)
      : pack(pack_in),
        options(options_in),
        schedule(schedule_in),
        sampler(options_in.seed, options_in.num_samples > 0 ? options_in.num_samples : pack_in.num_samples(),
                options_in.train_batch_size),
        ring(std::max(options_in.prefetch_batches, 1)) {
    for (int i = 0; i < options.num_workers; ++i) {
      workers.emplace_back([this](const std::stop_token& stop) { work(stop); });
    }
  }

  ~Impl() {
    for (auto& worker : workers) worker.request_stop();
    workers.clear();  // joins
  }

  /// One batch ahead of the training step, or why it could not be made.
  struct Ready {
    bool filled = false;
    Batch batch;
    std::exception_ptr error;
  };

  int64_t ring_size() const { return static_cast<int64_t>(ring.size()); }

  void work(const std::stop_token& stop) {
    std::unique_lock lock(mutex);
    while (true) {
      // A place is free again when next() has taken its batch: ready and unfinished batches together never exceed the
      // ring.
      const bool may_go_on =
          room.wait(lock, stop, [&] { return made == schedule.size() || made < given + ring_size(); });
      if (!may_go_on || made == schedule.size() || stop.stop_requested()) return;
      const int64_t i = made++;
      lock.unlock();
      Ready result{true, {}, nullptr};
      try {
        result.batch = make_batch(pack, options, sampler, schedule[i]);
      } catch (...) {
        result.error = std::current_exception();  // next() throws it when its turn comes
      }
      lock.lock();
      ring[i % ring_size()] = std::move(result);
      ready.notify_all();
    }
  }

  Batch take() {
    std::unique_lock lock(mutex);
    Ready& place = ring[given % ring_size()];
    ready.wait(lock, [&] { return place.filled; });
    Ready result = std::exchange(place, {});
    ++given;
    room.notify_all();
    lock.unlock();
    if (result.error) std::rethrow_exception(result.error);
    return std::move(result.batch);
  }

  const Pack& pack;
  const DataLoaderOptions options;
  const MicroBatchSchedule schedule;
  const Sampler sampler;

  std::mutex mutex;
  std::condition_variable_any room;
  std::condition_variable ready;
  int64_t made = 0;   // how many batches of the schedule the workers have begun
  int64_t given = 0;  // how many next() has given out
  std::vector<Ready> ring;
  std::vector<std::jthread> workers;
};

DataLoader::DataLoader(const Pack& pack, const DataLoaderOptions& options, MicroBatchSchedule schedule)
    : impl_(std::make_unique<Impl>(pack, options, schedule)) {}

DataLoader::~DataLoader() = default;

Batch DataLoader::next() {
  Impl& self = *impl_;
  LORASHARD_CHECK(self.given < self.schedule.size(), "all {} micro-batches were given out", self.schedule.size());
  const auto begin = std::chrono::steady_clock::now();
  Batch batch = self.workers.empty() ? make_batch(self.pack, self.options, self.sampler, self.schedule[self.given++])
                                     : self.take();
  batch.wait_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  return batch;
}

}  // namespace lorashard
