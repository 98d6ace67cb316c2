#include "models/lora_dropout.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "dist/error.h"
#include "dist/philox.h"

namespace lorashard {
namespace {

thread_local const std::vector<DropoutRow>* current_rows = nullptr;

constexpr uint32_t kModuleShift = 16;  // the purpose's word of the counter: the module above the purpose
constexpr int64_t kBlocksATask = 4096;

Purpose purpose_of_module(Purpose purpose, const DropoutRow& row, const LoraDropout& dropout) {
  return static_cast<Purpose>(static_cast<uint32_t>(purpose_of(purpose, row.class_image)) | dropout.module << kModuleShift);
}

/// Element 4b + j is kept when word j of block b is at least floor(p * 2^32).
void fill_mask(bool* keep, int64_t count, double p, Purpose of_module, const DropoutRow& row, const LoraDropout& dropout) {
  const auto threshold = static_cast<uint32_t>(std::floor(p * 0x1p32));
  const Purpose purpose = purpose_of_module(of_module, row, dropout);
  at::parallel_for(0, (count + 3) / 4, kBlocksATask, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const auto words = philox(dropout.seed, row.slot, purpose, static_cast<uint32_t>(block));
      for (int64_t j = 0; j < std::min<int64_t>(4, count - 4 * block); ++j)
        keep[4 * block + j] = words[static_cast<size_t>(j)] >= threshold;
    }
  });
}

const std::vector<DropoutRow>& rows_of(const at::Tensor& x) {
  LORASHARD_CHECK(x.size(0) == static_cast<int64_t>(current_rows->size()), "dropout of {} rows, {} are known", x.size(0),
                  current_rows->size());
  return *current_rows;
}

}  // namespace

LoraDropoutRows::LoraDropoutRows(std::vector<DropoutRow> rows) : rows_(std::move(rows)), outer_(current_rows) {
  current_rows = &rows_;
}

LoraDropoutRows::~LoraDropoutRows() { current_rows = outer_; }

const std::vector<DropoutRow>* LoraDropoutRows::current() { return current_rows; }

bool drops(const LoraDropout& dropout) {
  return (dropout.p > 0 || dropout.rank_p > 0 || dropout.module_p > 0) && current_rows;
}

at::Tensor lora_dropout(const at::Tensor& x, const LoraDropout& dropout) {
  if (dropout.p <= 0 || !current_rows) return x;
  const auto& rows = rows_of(x);
  const int64_t count = x.numel() / x.size(0);
  LORASHARD_CHECK(count <= int64_t{1} << 34, "dropout of {} elements of one image", count);
  const at::Tensor keep = at::empty(x.sizes(), at::kBool);
  for (size_t i = 0; i < rows.size(); ++i)
    fill_mask(keep.data_ptr<bool>() + static_cast<int64_t>(i) * count, count, dropout.p, Purpose::lora_dropout, rows[i], dropout);
  return at::where(keep.to(x.device()), x * (1 / (1 - dropout.p)), at::zeros({}, x.options()));
}

at::Tensor lora_rank_dropout(const at::Tensor& low, const LoraDropout& dropout, int64_t rank_dim) {
  if ((dropout.rank_p <= 0 && dropout.module_p <= 0) || !current_rows) return low;
  const auto& rows = rows_of(low);
  const int64_t rank = low.size(rank_dim);
  const at::Tensor keep = at::empty({low.size(0), rank}, at::kBool);
  for (size_t i = 0; i < rows.size(); ++i) {
    bool* of_row = keep.data_ptr<bool>() + static_cast<int64_t>(i) * rank;
    const Purpose of_module = purpose_of_module(Purpose::module_dropout, rows[i], dropout);
    if (uniform(dropout.seed, rows[i].slot, of_module) < dropout.module_p)
      std::fill_n(of_row, rank, false);
    else
      fill_mask(of_row, rank, dropout.rank_p, Purpose::rank_dropout, rows[i], dropout);
  }
  std::vector<int64_t> sizes(static_cast<size_t>(low.dim()), 1);
  sizes[0] = low.size(0);
  sizes[static_cast<size_t>(rank_dim)] = rank;
  return at::where(keep.view(sizes).to(low.device()), low * (1 / (1 - dropout.rank_p)), at::zeros({}, low.options()));
}

}  // namespace lorashard
