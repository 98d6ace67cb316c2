// All randomness of a run: Philox4x32-10 (Salmon et al., SC11), a pure function of (seed, slot, purpose, block).
// docs/determinism.md specifies every map below well enough to write it again. No state, thread-safe.
#pragma once
#include <array>
#include <cstdint>
#include <span>

namespace lorashard {

/// What a random number is for. Persisted by meaning: never renumber (a resumed run would draw other numbers).
enum class Purpose : uint32_t {
  permutation = 1,  ///< order of the rows in an epoch (slot = epoch)
  crop = 2,
  flip = 3,
  caption_choice = 4,
  caption_dropout = 5,
  vae_sample = 6,
  noise = 7,
  timestep = 8,
  noise_offset = 9,
  input_perturbation = 10,
  lora_init = 11,        ///< slot = position of the module in the adapter
  lora_dropout = 12,     ///< plus 2^16 times the position of the module
  base_init = 13,        ///< init-base (slot = position of the tensor)
  sampling_noise = 14,   ///< what a sampled picture starts from (slot = number of the picture)
  caption_shuffle = 20,      ///< a block a tag
  caption_tag_dropout = 21,  ///< a block a tag
  caption_wildcard = 22,     ///< a block a wildcard
  noise_offset_strength = 23,
  input_perturbation_strength = 24,
  multires_noise = 25,        ///< plus 2^16 times the level
  multires_noise_ratio = 26,  ///< a block a level
  rank_dropout = 27,          ///< plus 2^16 times the position of the module
  module_dropout = 28,        ///< plus 2^16 times the position of the module
  held_out_rows = 29,         ///< which rows are held out (a permutation, epoch 0)
  held_out_noise = 30,        ///< plus 2^16 times the number of the timestep (slot = row)
  bucket_order = 31,          ///< order of the micro-batches in an epoch with buckets (slot = epoch)
  bucket_images = 32,         ///< order of the images of a bucket (slot = epoch * number of buckets + the bucket's place)
  class_image = 0x8000,  ///< added to the purposes above for the class image of the same slot
};

/// `purpose` as the class image of a slot draws it (prior preservation), or as it is.
constexpr Purpose purpose_of(Purpose purpose, bool class_image) {
  const auto shift = class_image ? static_cast<uint32_t>(Purpose::class_image) : 0;
  return static_cast<Purpose>(static_cast<uint32_t>(purpose) + shift);
}

/// One Philox4x32-10 block: key = (seed low, seed high), counter = (slot low, slot high, purpose, block).
std::array<uint32_t, 4> philox(uint64_t seed, uint64_t slot, Purpose purpose, uint32_t block);

/// The raw function with its published interface (for the reference vectors).
std::array<uint32_t, 4> philox4x32_10(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

/// Uniform double in [0, 1) with 53 random bits, from block 0 of (seed, slot, purpose).
double uniform(uint64_t seed, uint64_t slot, Purpose purpose);

/// The same from block `block`, for purposes that draw several: uniform() is that of block 0.
double uniform_at(uint64_t seed, uint64_t slot, Purpose purpose, uint32_t block);

/// Uniform integer in [0, n), n >= 1, without bias that matters (53 bits): floor(uniform * n).
int64_t uniform_int(uint64_t seed, uint64_t slot, Purpose purpose, int64_t n);

/// Standard normals by Box-Muller in double, rounded once to float: element 4b+j comes from block b.
void fill_normal(std::span<float> out, uint64_t seed, uint64_t slot, Purpose purpose);

}  // namespace lorashard
