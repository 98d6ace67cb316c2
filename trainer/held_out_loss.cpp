#include "trainer/held_out_loss.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "dist/activity.h"
#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/permutation.h"
#include "dist/philox.h"
#include "dist/stop_request.h"
#include "trainer/conditioning.h"
#include "trainer/diffusion_loss.h"

namespace lorashard {
namespace {

constexpr uint32_t kTimestepShift = 16;  // the purpose's word of the counter: the timestep's number above the purpose

at::Tensor noise_of(const at::Tensor& latents, uint64_t seed, int64_t row, uint32_t timestep) {
  const auto purpose = static_cast<Purpose>(static_cast<uint32_t>(Purpose::held_out_noise) | timestep << kTimestepShift);
  at::Tensor noise = at::empty(latents.sizes(), at::kFloat);
  fill_normal({noise.mutable_data_ptr<float>(), static_cast<size_t>(noise.numel())}, seed, static_cast<uint64_t>(row), purpose);
  return noise.to(latents.device());
}

double row_loss(const StableDiffusion& base, const Pack& pack, const DataLoaderOptions& loader, int64_t row,
                const HeldOutLossOptions& options) {
  const at::NoGradGuard no_grad;
  Batch batch = held_out_batch(pack, loader, row);
  for (at::Tensor* tensor : tensors_of(batch)) *tensor = tensor->to(base.device);
  const Conditioning conditioning = encode(base, batch, options.deterministic, /*train_text_encoder=*/false, options.texts);
  LossOptions plain;
  plain.do_edm_style_training = options.do_edm_style_training;
  double sum = 0;
  const std::vector<int64_t> timesteps = held_out_timesteps(loader.timesteps);
  for (size_t i = 0; i < timesteps.size(); ++i) {
    batch.noise = noise_of(conditioning.latents, loader.seed, row, static_cast<uint32_t>(i));
    batch.timesteps = at::full({1}, timesteps[i], at::dtype(at::kLong).device(base.device));
    sum += diffusion_loss(base, conditioning, batch, plain).loss.item<double>();
  }
  return sum / static_cast<double>(timesteps.size());
}

std::string to_wire(double value) { return {reinterpret_cast<const char*>(&value), sizeof value}; }

double from_wire(const std::string& wire) {
  double value = 0;
  LORASHARD_CHECK(wire.size() == sizeof value, "a loss of {} bytes", wire.size());
  std::memcpy(&value, wire.data(), sizeof value);
  return value;
}

}  // namespace

std::vector<int64_t> held_out_rows(const Recipe& recipe, const Pack& pack) {
  if (recipe.validation.validation_split == 0) return {};
  const int64_t num_rows = pack.num_samples();
  const auto count = static_cast<int64_t>(std::floor(static_cast<double>(num_rows) * recipe.validation.validation_split));
  if (count == 0) {
    throw Error(ErrorKind::usage,
                fmt::format("opening the training data: 'validation.validation_split' = {} of the {} pictures of '{}' is less than one",
                            recipe.validation.validation_split, num_rows, pack.folder().string()),
                fmt::format("give at least {:.3g}, or leave the key out", 1.0 / static_cast<double>(num_rows) + 5e-4));
  }
  const Permutation order(static_cast<uint64_t>(recipe.seed), 0, num_rows, Purpose::held_out_rows);
  std::vector<int64_t> rows;
  for (int64_t i = 0; i < count; ++i) rows.push_back(order(i));
  std::sort(rows.begin(), rows.end());
  return rows;
}

std::vector<int64_t> held_out_timesteps(const TimestepOptions& options) {
  const int64_t end = options.max_timestep > 0 ? options.max_timestep : options.num_train_timesteps;
  std::vector<int64_t> timesteps;
  for (int64_t i = 0; i < kHeldOutTimesteps; ++i)
    timesteps.push_back(options.min_timestep + (2 * i + 1) * (end - options.min_timestep) / (2 * kHeldOutTimesteps));
  return timesteps;
}

std::optional<double> held_out_loss(Communicator& communicator, const StableDiffusion& base, const Pack& pack,
                                    const DataLoaderOptions& loader, const std::vector<int64_t>& rows, const HeldOutLossOptions& options) {
  const auto ranks = static_cast<size_t>(communicator.world().world_size), rank = static_cast<size_t>(communicator.world().rank);
  std::vector<double> losses;
  for (size_t round = 0; round < rows.size(); round += ranks) {
    if (any_rank(communicator, stop_requested())) return std::nullopt;
    double mine = 0;
    run_agreed(communicator, "computing the loss on held-out pictures", [&] {
      if (round + rank >= rows.size()) return;
      const InLongWork long_work;
      mine = row_loss(base, pack, loader, rows[round + rank], options);
    });
    const std::vector<std::string> all = communicator.all_gather(to_wire(mine));
    for (size_t i = 0; i < ranks && round + i < rows.size(); ++i) losses.push_back(from_wire(all[i]));
  }
  return std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(losses.size());
}

}  // namespace lorashard
