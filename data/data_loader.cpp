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

Batch empty_batch(int64_t micro_batch, int64_t num_rows, const DataLoaderOptions& options) {
  const int64_t side = options.transform.resolution;
  const std::vector<int64_t> latent_shape{num_rows, options.latent_channels, options.latent_height, options.latent_width};
  Batch batch;
  batch.micro_batch = micro_batch;
  batch.pixel_values = at::empty({num_rows, 3, side, side}, at::kFloat);
  batch.vae_noise = at::empty(latent_shape, at::kFloat);
  batch.noise = at::empty(latent_shape, at::kFloat);
  batch.timesteps = at::empty({num_rows}, at::kLong);
  return batch;
}

const std::string& caption_of(const Pack& pack, int64_t row, const DataLoaderOptions& options) {
  const bool own = options.own_captions && !pack.caption(row).empty();
  return own ? pack.caption(row) : options.instance_prompt;
}

/// Row `i` of the batch: the instance image of `slot`, or the class image beside it.
void add_row(Batch& batch, int64_t i, const Pack& pack, const Slot& place, bool class_image,
             const DataLoaderOptions& options) {
  const auto [slot, row, epoch] = place;
  const auto purpose = [class_image](Purpose of_instance) { return purpose_of(of_instance, class_image); };
  const Image image = decode_image(pack.read_image(row), pack.file_name(row));
  const bool drop = options.caption_dropout > 0 &&
                    uniform(options.seed, slot, purpose(Purpose::caption_dropout)) < options.caption_dropout;
  const std::string& caption = class_image ? options.class_images.class_prompt : caption_of(pack, row, options);
  batch.captions.push_back(drop ? "" : caption);
  batch.images.push_back(
      transform_image(image, options.transform, options.seed, slot, class_image, batch.pixel_values[i]));
  fill_normal_slot(batch.vae_noise, i, options.seed, slot, purpose(Purpose::vae_sample));
  fill_normal_slot(batch.noise, i, options.seed, slot, purpose(Purpose::noise));
  batch.timesteps.mutable_data_ptr<int64_t>()[i] =
      uniform_int(options.seed, slot, purpose(Purpose::timestep), options.num_train_timesteps);
}

int64_t rows_used(const Pack& pack, int64_t limit) { return limit > 0 ? limit : pack.num_samples(); }

/// Where the rows of a micro-batch come from. `class_sampler` only with prior preservation.
struct Samplers {
  Samplers(const Pack& pack, const DataLoaderOptions& options)
      : sampler(options.seed, rows_used(pack, options.num_samples), options.train_batch_size) {
    const ClassImages& of_class = options.class_images;
    if (of_class.pack == nullptr) return;
    class_sampler.emplace(options.seed, rows_used(*of_class.pack, of_class.num_class_images), options.train_batch_size,
                          /*class_images=*/true);
  }

  Sampler sampler;
  std::optional<Sampler> class_sampler;
};

Batch make_batch(const Pack& pack, const DataLoaderOptions& options, const Samplers& samplers, int64_t micro_batch) {
  const int64_t size = options.train_batch_size;
  const bool with_class_images = samplers.class_sampler.has_value();
  Batch batch = empty_batch(micro_batch, with_class_images ? 2 * size : size, options);
  for (const Slot& place : samplers.sampler.micro_batch(micro_batch)) {
    batch.slots.push_back(place.slot);
    batch.sample_ids.push_back(place.row);
    add_row(batch, static_cast<int64_t>(batch.images.size()), pack, place, /*class_image=*/false, options);
  }
  if (with_class_images) {
    for (const Slot& place : samplers.class_sampler->micro_batch(micro_batch)) {
      batch.class_sample_ids.push_back(place.row);
      add_row(batch, static_cast<int64_t>(batch.images.size()), *options.class_images.pack, place, /*class_image=*/true,
              options);
    }
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
        samplers(pack_in, options_in),
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
        result.batch = make_batch(pack, options, samplers, schedule[i]);
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
  const Samplers samplers;

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
  Batch batch = self.workers.empty() ? make_batch(self.pack, self.options, self.samplers, self.schedule[self.given++])
                                     : self.take();
  batch.wait_ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
  return batch;
}

}  // namespace lorashard
