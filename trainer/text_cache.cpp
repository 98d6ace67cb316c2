#include "trainer/text_cache.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "data/shared_store.h"
#include "dist/error.h"
#include "dist/sha256.h"

namespace lorashard {
namespace {

std::string identity_of(const std::vector<std::string>& texts, const StableDiffusion& base, const TextCacheOptions& options) {
  std::string all = fmt::format("texts 1\n{}\n{}\n{}\n", options.base_hash, options.arithmetic, at::toString(base.dtype));
  if (base.clip_skip > 0) all += fmt::format("clip_skip {}\n", base.clip_skip);
  for (const std::string& text : texts) all += fmt::format("{}\n{}\n", text.size(), text);
  return sha256(all);
}

void append(std::vector<uint8_t>& rows, const at::Tensor& tensor) {
  const at::Tensor values = tensor.cpu().contiguous();
  const auto* data = static_cast<const uint8_t*>(values.const_data_ptr());
  rows.insert(rows.end(), data, data + values.nbytes());
}

}  // namespace

TextCache::TextCache(Communicator& communicator, const StableDiffusion& base, std::vector<std::string> texts,
                     const TextCacheOptions& options)
    : texts_(std::move(texts)),
      dtype_(base.dtype),
      length_(base.tokenizer->model_max_length()),
      hidden_size_(base.unet->config().cross_attention_dim),
      pooled_size_(base.is_sdxl() ? base.text_encoder_2->config().projection_dim : 0) {
  const std::string identity = identity_of(texts_, base, options);
  const int64_t row_bytes = (length_ * hidden_size_ + pooled_size_) * static_cast<int64_t>(c10::elementSize(dtype_));
  store_ = std::make_unique<TensorStore>(options.folder / ("texts-" + identity.substr(0, 16)), identity,
                                         static_cast<int64_t>(texts_.size()), row_bytes);
  std::vector<uint8_t> rows;  // of the shard that is being made
  const auto advance = [&](const TensorStore&, int64_t shard) {
    const int64_t done = static_cast<int64_t>(rows.size()) / row_bytes;
    const TextEmbedding text = encode(base, texts_[static_cast<size_t>(store_->first_row(shard) + done)]);
    append(rows, text.encoder_hidden_states);
    if (pooled_size_ > 0) append(rows, text.pooled_prompt_embeds);
    if (done + 1 < store_->rows_of(shard)) return false;
    store_->write(shard, rows);
    rows.clear();
    return true;
  };
  open_shared_stores(communicator, {store_.get(), 1},
                     {.contents = "cached text embeddings",
                      .making = "encoding the captions",
                      .announce = fmt::format("caching the embeddings of {} distinct captions", texts_.size())},
                     advance);
}

TextEmbedding TextCache::encode(const StableDiffusion& base, const std::string& text) const {
  const at::NoGradGuard no_grad;
  const auto ids = [&](const CLIPTokenizer& tokenizer) { return tokenizer({text}).to(base.device); };
  const TextEmbedding found =
      encode_text(base, ids(*base.tokenizer), base.is_sdxl() ? ids(*base.tokenizer_2) : at::Tensor(), /*one_by_one=*/true);
  LORASHARD_CHECK(found.encoder_hidden_states.numel() == length_ * hidden_size_ && found.encoder_hidden_states.scalar_type() == dtype_,
                  "text embeddings of {} elements", found.encoder_hidden_states.numel());
  return found;
}

std::optional<TextEmbedding> TextCache::find(const std::string& text) const {
  const auto place = std::lower_bound(texts_.begin(), texts_.end(), text);
  if (place == texts_.end() || *place != text) return std::nullopt;
  at::Tensor row = at::empty({length_ * hidden_size_ + pooled_size_}, dtype_);
  store_->read_row(place - texts_.begin(), row.mutable_data_ptr());
  TextEmbedding found;
  found.encoder_hidden_states = row.narrow(0, 0, length_ * hidden_size_).view({1, length_, hidden_size_});
  if (pooled_size_ > 0) found.pooled_prompt_embeds = row.narrow(0, length_ * hidden_size_, pooled_size_).view({1, pooled_size_});
  return found;
}

}  // namespace lorashard
