// What the text encoders make of each distinct caption, kept on disk. Made by all ranks together at the first start, one caption a call
// as a training step in deterministic mode does it, so that training with and without it has the same bits. A caption that isn't in it
// (shuffled tags) is encoded when it comes. Not for text encoders that are trained. Called by the Trainer and by trainer/conditioning.
#pragma once
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "data/tensor_store.h"
#include "dist/communicator.h"
#include "models/stable_diffusion.h"
#include "trainer/conditioning.h"

namespace lorashard {

struct TextCacheOptions {
  std::filesystem::path folder;  ///< of all caches
  std::string base_hash;
  std::string arithmetic;        ///< what else the bits depend on: processor, threads, device
};

class TextCache {
 public:
  /// Opens `folder`/texts-HASH, after making what is missing of it. `texts`: sorted, distinct, the same on every rank. Collective. Throws
  /// what share_work() and TensorStore throw, on every rank.
  TextCache(Communicator& communicator, const StableDiffusion& base, std::vector<std::string> texts, const TextCacheOptions& options);

  /// [1, 77, D] and [1, P] in host memory; nothing for a text that wasn't among them. Throws Error(bad_data). Thread-safe.
  std::optional<TextEmbedding> find(const std::string& text) const;

 private:
  TextEmbedding encode(const StableDiffusion& base, const std::string& text) const;

  std::vector<std::string> texts_;
  at::ScalarType dtype_;
  int64_t length_, hidden_size_, pooled_size_;  // pooled_size_ 0: none
  std::unique_ptr<TensorStore> store_;
};

}  // namespace lorashard
