#include "trainer/picture_maker.h"

#include <fmt/ranges.h>

#include <cstring>
#include <utility>

#include "dist/activity.h"
#include "dist/agreement.h"
#include "dist/error.h"
#include "dist/log.h"
#include "dist/stop_request.h"

namespace lorashard {
namespace {

/// An Image as bytes for all_gather: rank 0's own needs none.
std::string to_wire(const Image& image) {
  std::string wire(2 * sizeof(int64_t) + image.rgb.size(), '\0');
  std::memcpy(wire.data(), &image.height, sizeof image.height);
  std::memcpy(wire.data() + sizeof image.height, &image.width, sizeof image.width);
  std::memcpy(wire.data() + 2 * sizeof(int64_t), image.rgb.data(), image.rgb.size());
  return wire;
}

Image from_wire(const std::string& wire) {
  Image image;
  LORASHARD_CHECK(wire.size() > 2 * sizeof(int64_t), "a picture of {} bytes", wire.size());
  std::memcpy(&image.height, wire.data(), sizeof image.height);
  std::memcpy(&image.width, wire.data() + sizeof image.height, sizeof image.width);
  image.rgb.assign(wire.begin() + 2 * sizeof(int64_t), wire.end());
  LORASHARD_CHECK(image.rgb.size() == static_cast<size_t>(image.height * image.width * 3),
                  "a picture of {}x{} in {} bytes", image.width, image.height, image.rgb.size());
  return image;
}

Image make_picture(const StableDiffusion& base, const PictureJob& job, const SamplingProgress& progress,
                   NotFinite not_finite) {
  try {
    return to_image(text_to_image(base, job.options, job.number, progress));
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::non_finite || not_finite == NotFinite::error) throw;
    log::warning("picture {} of '{}' is black: {}", job.number, job.options.prompt, error.message());
    const auto pixels = static_cast<size_t>(job.options.height * job.options.width);
    return {job.options.height, job.options.width, std::vector<uint8_t>(pixels * 3, 0)};
  }
}

}  // namespace

void make_pictures(Communicator& communicator, const StableDiffusion& base, const std::vector<PictureJob>& jobs,
                   const std::function<void(size_t, Image)>& take, NotFinite not_finite) {
  const auto ranks = static_cast<size_t>(communicator.world().world_size);
  const auto rank = static_cast<size_t>(communicator.world().rank);
  for (size_t round = 0; round < jobs.size(); round += ranks) {
    Image mine;
    run_agreed(communicator, "making pictures", [&] {
      const size_t job = round + rank;
      if (job >= jobs.size()) return;
      const InLongWork long_work;
      const auto progress = [&](int64_t done, int64_t calls) {
        if (rank == 0) log::status(fmt::format("picture {}/{}  step {}/{}", job + 1, jobs.size(), done + 1, calls));
        return !stop_requested();
      };
      mine = make_picture(base, jobs[job], progress, not_finite);
    });
    // On rank 0 alone they are looked at, but all must know of its faults.
    const auto pictures = communicator.all_gather(rank == 0 || mine.rgb.empty() ? "" : to_wire(mine));
    run_agreed(communicator, "keeping pictures", [&] {
      for (size_t i = 0; rank == 0 && i < ranks && round + i < jobs.size(); ++i)
        take(round + i, i == 0 ? std::move(mine) : from_wire(pictures[i]));
    });
  }
  if (rank == 0) log::status("");
}

Image to_image(const at::Tensor& pixels) {
  const at::Tensor dense = pixels.contiguous();
  const auto* first = dense.const_data_ptr<uint8_t>();
  return {dense.size(0), dense.size(1), {first, first + dense.numel()}};
}

std::string scheduler_in_words(const TextToImageOptions& options) {
  const std::string& name = options.scheduler;
  const std::string known = name == "dpmsolver++" ? "DPM++ 2M"
                            : name == "ddim"      ? "DDIM"
                            : name == "euler"     ? "Euler"
                                                  : "PNDM";
  return options.use_karras_sigmas ? known + " Karras" : known;
}

std::string picture_parameters(const PictureJob& job, const std::string& model,
                               const std::vector<std::string>& adapters) {
  const TextToImageOptions& options = job.options;
  std::string text = options.prompt + "\n";
  if (!options.negative_prompt.empty()) text += "Negative prompt: " + options.negative_prompt + "\n";
  text += fmt::format("Steps: {}, Sampler: {}, CFG scale: {:g}, Seed: {}, Picture: {}, Size: {}x{}, Model: {}",
                      options.num_inference_steps, scheduler_in_words(options), options.guidance_scale, options.seed,
                      job.number, options.width, options.height, model);
  if (options.clip_skip > 0) text += fmt::format(", Clip skip: {}", options.clip_skip + 1);  // the web UI counts from 1
  if (!adapters.empty()) text += fmt::format(", LoRA: \"{}\"", fmt::join(adapters, ", "));
  return text + ", Version: lorashard";
}

}  // namespace lorashard
