#include "data/data_loader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <numeric>
#include <optional>
#include <set>
#include <stop_token>
#include <thread>
#include <utility>

#include "data/bucket_sampler.h"
#include "data/loss_mask.h"
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

/// A row of a batch: the instance image of a slot, or the class image beside it.
struct Row {
  const Pack* pack;
  Slot place;
  bool class_image;
  Framing framing = {};

  Purpose purpose(Purpose of_instance) const { return purpose_of(of_instance, class_image); }
};

int64_t sum(const std::vector<int64_t>& counts) { return std::accumulate(counts.begin(), counts.end(), int64_t{0}); }

/// Where the rows of a micro-batch come from. With buckets `bucket_sampler`, else `sampler`; `class_sampler` only with
/// prior preservation.
struct Samplers {
  Samplers(const Pack& pack, const DataLoaderOptions& options) : timesteps(options.timesteps) {
    if (options.buckets) {
      LORASHARD_CHECK(options.held_out_rows.empty(), "{} rows held out of buckets", options.held_out_rows.size());
      manager.emplace(*options.buckets);
      const int64_t num_samples = options.num_samples > 0 ? options.num_samples : pack.num_images_in_epoch();
      bucket_sampler.emplace(options.seed, options.train_batch_size, make_buckets(pack, *manager, num_samples));
    } else {
      const std::vector<int64_t> repeats = repeats_of(pack, options.held_out_rows);
      const int64_t all = repeats.empty() ? pack.num_samples() : sum(repeats);
      sampler.emplace(options.seed, options.num_samples > 0 ? options.num_samples : all, options.train_batch_size, /*class_images=*/false,
                      repeats);
    }
    const ClassImages& of_class = options.class_images;
    if (of_class.pack == nullptr) return;
    const int64_t num_class_images = of_class.num_class_images > 0 ? of_class.num_class_images : of_class.pack->num_samples();
    class_sampler.emplace(options.seed, num_class_images, options.train_batch_size, /*class_images=*/true);
  }

  /// [instance..., class...]
  std::vector<Row> rows(const Pack& pack, const DataLoaderOptions& options, int64_t micro_batch) const {
    std::vector<Row> rows;
    ImageSize bucket;
    if (bucket_sampler) {
      const BucketSampler::MicroBatch found = bucket_sampler->micro_batch(micro_batch);
      bucket = found.size;
      for (const Slot& place : found.slots) rows.push_back({&pack, place, false});
    } else {
      for (const Slot& place : sampler->micro_batch(micro_batch)) rows.push_back({&pack, place, false});
    }
    if (class_sampler) {
      for (const Slot& place : class_sampler->micro_batch(micro_batch))
        rows.push_back({options.class_images.pack, place, true});
    }
    for (Row& row : rows) row.framing = framing_of(row, options, bucket);
    return rows;
  }

  Framing framing_of(const Row& row, const DataLoaderOptions& options, ImageSize bucket) const {
    const ImageSize size = row.pack->size(row.place.row);
    if (!manager) return square_framing(size, options.transform.resolution);
    return row.class_image ? covering(size, bucket) : manager->select_bucket(size, row.pack->file_name(row.place.row));
  }

  std::optional<BucketManager> manager;
  std::optional<BucketSampler> bucket_sampler;
  std::optional<Sampler> sampler, class_sampler;
  TimestepDistribution timesteps;
};

/// For `num_rows` pictures of `size`.
Batch empty_batch(int64_t micro_batch, int64_t num_rows, ImageSize size, const DataLoaderOptions& options) {
  const int64_t latent_height = size.height / options.vae_scale_factor,
                latent_width = size.width / options.vae_scale_factor;
  const std::vector<int64_t> latent_shape{num_rows, options.latent_channels, latent_height, latent_width};
  Batch batch;
  batch.micro_batch = micro_batch;
  if (options.read_moments) {
    batch.moments = at::empty({num_rows, 2 * options.latent_channels, latent_height, latent_width}, at::kFloat);
  } else {
    batch.pixel_values = at::empty({num_rows, 3, size.height, size.width}, at::kFloat);
  }
  batch.vae_noise = at::empty(latent_shape, at::kFloat);
  batch.noise = at::empty(latent_shape, at::kFloat);
  batch.timesteps = at::empty({num_rows}, at::kLong);
  return batch;
}

/// What a row's text is made of: its own captions, or the prompt in their place.
std::span<const std::string> candidates_of(const Row& row, const DataLoaderOptions& options) {
  if (row.class_image) return {&options.class_images.class_prompt, 1};
  const std::span<const std::string> own = row.pack->captions(row.place.row);
  if (options.own_captions && !own[0].empty()) return own;
  return {&options.instance_prompt, 1};
}

std::string caption_of(const Row& row, const DataLoaderOptions& options) {
  return slot_caption(candidates_of(row, options), options.captions, options.seed, row.place, row.class_image);
}

/// The picture of row `i`, or what a cache has of it.
TransformedImage add_picture(Batch& batch, int64_t i, const Row& row, const DataLoaderOptions& options) {
  const TransformedImage plan = plan_transform(row.pack->size(row.place.row), row.framing, options.transform,
                                               options.seed, row.place.slot, row.class_image);
  if (options.read_moments) {
    options.read_moments(row.class_image, row.place.row, plan, batch.moments[i].mutable_data_ptr<float>());
  } else {
    const Image image = decode_image(row.pack->read_image(row.place.row), row.pack->file_name(row.place.row));
    apply_transform(image, options.transform.interpolation, plan, batch.pixel_values[i]);
  }
  return plan;
}

void add_row(Batch& batch, int64_t i, const Row& row, const TimestepDistribution& timesteps, const DataLoaderOptions& options) {
  const uint64_t seed = options.seed, slot = row.place.slot;
  batch.captions.push_back(caption_of(row, options));
  batch.images.push_back(add_picture(batch, i, row, options));
  fill_normal_slot(batch.vae_noise, i, seed, slot, row.purpose(Purpose::vae_sample));
  fill_normal_slot(batch.noise, i, seed, slot, row.purpose(Purpose::noise));
  if (options.multires_noise.iterations > 0) {
    const int64_t channels = batch.noise.size(1), height = batch.noise.size(2), width = batch.noise.size(3);
    const auto count = static_cast<size_t>(channels * height * width);
    add_multires_noise({batch.noise.mutable_data_ptr<float>() + static_cast<size_t>(i) * count, count}, channels, height, width,
                       options.multires_noise, seed, slot, row.class_image);
  }
  batch.timesteps.mutable_data_ptr<int64_t>()[i] = timesteps.draw(seed, slot, row.purpose(Purpose::timestep));
}

/// Normals that exist only in some runs, each image's times a strength of its own where `strength` is given.
at::Tensor extra_normals(const std::vector<Row>& rows, const std::vector<int64_t>& shape, uint64_t seed, Purpose purpose,
                         std::optional<Purpose> strength) {
  at::Tensor normals = at::empty(shape, at::kFloat);
  const int64_t count = normals.numel() / normals.size(0);
  for (int64_t i = 0; i < normals.size(0); ++i) {
    const uint64_t slot = rows[i].place.slot;
    fill_normal_slot(normals, i, seed, slot, rows[i].purpose(purpose));
    if (!strength) continue;
    const auto factor = static_cast<float>(uniform(seed, slot, rows[i].purpose(*strength)));
    float* values = normals.mutable_data_ptr<float>() + i * count;
    std::transform(values, values + count, values, [=](float value) { return value * factor; });
  }
  return normals;
}

void draw_extra_noise(const DataLoaderOptions& options, const std::vector<Row>& rows, Batch& batch) {
  const auto strength = [](bool random, Purpose purpose) { return random ? std::optional(purpose) : std::nullopt; };
  if (options.draw_noise_offset) {
    batch.noise_offset = extra_normals(rows, {batch.noise.size(0), batch.noise.size(1), 1, 1}, options.seed, Purpose::noise_offset,
                                       strength(options.noise_offset_random_strength, Purpose::noise_offset_strength));
  }
  if (options.draw_input_perturbation) {
    batch.input_perturbation =
        extra_normals(rows, batch.noise.sizes().vec(), options.seed, Purpose::input_perturbation,
                      strength(options.input_perturbation_random_strength, Purpose::input_perturbation_strength));
  }
}

/// What the loss of each image is multiplied by: the mask of its row, all ones where it has none, and its weight.
void read_loss_factors(const DataLoaderOptions& options, const std::vector<Row>& rows, Batch& batch) {
  const int64_t size = batch.noise.size(0), height = batch.noise.size(2), width = batch.noise.size(3);
  const bool weights = std::any_of(rows.begin(), rows.end(), [](const Row& row) { return row.pack->has_weights(); });
  if (options.loss_masks) batch.loss_mask = at::empty({size, 1, height, width}, at::kFloat);
  if (weights) batch.loss_weights = at::empty({size}, at::kFloat);
  for (int64_t i = 0; i < size; ++i) {
    const Pack& pack = *rows[i].pack;
    const int64_t row = rows[i].place.row;
    if (weights) batch.loss_weights.mutable_data_ptr<float>()[i] = static_cast<float>(pack.weight(row));
    if (!options.loss_masks) continue;
    const std::span<float> out(batch.loss_mask.mutable_data_ptr<float>() + i * height * width,
                               static_cast<size_t>(height * width));
    const std::vector<uint8_t> bytes = pack.read_mask(row);
    if (bytes.empty())
      std::fill(out.begin(), out.end(), 1.0F);
    else
      write_loss_mask(decode_image(bytes, "the mask of " + pack.file_name(row)), batch.images[i],
                      options.vae_scale_factor, out);
  }
}

Batch make_batch(const Pack& pack, const DataLoaderOptions& options, const Samplers& samplers, int64_t micro_batch) {
  const std::vector<Row> rows = samplers.rows(pack, options, micro_batch);
  Batch batch = empty_batch(micro_batch, static_cast<int64_t>(rows.size()), rows[0].framing.cropped, options);
  for (const Row& row : rows) {
    if (!row.class_image) batch.slots.push_back(row.place.slot);
    (row.class_image ? batch.class_sample_ids : batch.sample_ids).push_back(row.place.row);
    add_row(batch, static_cast<int64_t>(batch.images.size()), row, samplers.timesteps, options);
  }
  draw_extra_noise(options, rows, batch);
  read_loss_factors(options, rows, batch);
  if (options.tokenize) batch.input_ids = options.tokenize(batch.captions);
  if (options.tokenize_2) batch.input_ids_2 = options.tokenize_2(batch.captions);
  return batch;
}

}  // namespace

std::vector<at::Tensor*> tensors_of(Batch& batch) {
  std::vector<at::Tensor*> tensors = {&batch.pixel_values, &batch.moments,      &batch.input_ids,    &batch.input_ids_2,
                                      &batch.vae_noise,    &batch.noise,        &batch.timesteps,
                                      &batch.noise_offset, &batch.input_perturbation, &batch.loss_mask,
                                      &batch.loss_weights};
  std::erase_if(tensors, [](const at::Tensor* tensor) { return !tensor->defined(); });
  return tensors;
}

std::vector<std::string> texts_of(const Pack& pack, const DataLoaderOptions& options) {
  std::set<std::string> texts = {""};
  const auto add = [&](const Row& row) {
    for (const std::string& candidate : candidates_of(row, options)) {
      texts.insert(slot_caption({&candidate, 1}, options.captions, options.seed, row.place, row.class_image));
    }
  };
  for (int64_t row = 0; row < pack.num_samples(); ++row) add({&pack, {static_cast<uint64_t>(row), row, 0}, false});
  if (options.class_images.pack != nullptr) add({options.class_images.pack, {0, 0, 0}, true});
  return {texts.begin(), texts.end()};
}

std::vector<int64_t> repeats_of(const Pack& pack, const std::vector<int64_t>& held_out_rows) {
  std::vector<int64_t> repeats;
  if (pack.num_images_in_epoch() == pack.num_samples() && held_out_rows.empty()) return repeats;
  for (int64_t row = 0; row < pack.num_samples(); ++row) repeats.push_back(pack.repeats(row));
  for (const int64_t row : held_out_rows) repeats.at(static_cast<size_t>(row)) = 0;
  return repeats;
}

Batch held_out_batch(const Pack& pack, const DataLoaderOptions& training, int64_t row) {
  DataLoaderOptions options = training;
  options.transform.center_crop = true;
  options.transform.random_flip = false;
  options.captions.caption_dropout_rate = options.captions.caption_tag_dropout_rate = 0;
  options.captions.caption_dropout_every_n_epochs = 0;
  const Row of_pack{&pack, {static_cast<uint64_t>(row), row, 0}, false, square_framing(pack.size(row), options.transform.resolution)};
  Batch batch = empty_batch(0, 1, of_pack.framing.cropped, options);
  batch.sample_ids = {row};
  batch.captions = {caption_of(of_pack, options)};
  batch.images = {add_picture(batch, 0, of_pack, options)};
  batch.vae_noise.zero_();
  batch.noise = batch.timesteps = at::Tensor();
  if (options.tokenize) batch.input_ids = options.tokenize(batch.captions);
  if (options.tokenize_2) batch.input_ids_2 = options.tokenize_2(batch.captions);
  return batch;
}

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
