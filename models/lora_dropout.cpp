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

Purpose purpose_of(const DropoutRow& row, const LoraDropout& dropout) {
  const auto number = [](Purpose purpose) { return static_cast<uint32_t>(purpose); };
  const uint32_t purpose = number(Purpose::lora_dropout) + (row.class_image ? number(Purpose::class_image) : 0);
  return static_cast<Purpose>(purpose | dropout.module << kModuleShift);
}

/// Element 4b + j is kept when word j of block b is at least floor(p * 2^32).
void fill_mask(bool* keep, int64_t count, const DropoutRow& row, const LoraDropout& dropout) {
  const auto threshold = static_cast<uint32_t>(std::floor(dropout.p * 0x1p32));
  const Purpose purpose = purpose_of(row, dropout);
  at::parallel_for(0, (count + 3) / 4, kBlocksATask, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const auto words = philox(dropout.seed, row.slot, purpose, static_cast<uint32_t>(block));
      for (int64_t j = 0; j < std::min<int64_t>(4, count - 4 * block); ++j)
        keep[4 * block + j] = words[static_cast<size_t>(j)] >= threshold;
    }
  });
}

}  // namespace

LoraDropoutRows::LoraDropoutRows(std::vector<DropoutRow> rows) : rows_(std::move(rows)), outer_(current_rows) {
  current_rows = &rows_;
}

LoraDropoutRows::~LoraDropoutRows() { current_rows = outer_; }

const std::vector<DropoutRow>* LoraDropoutRows::current() { return current_rows; }

bool drops(const LoraDropout& dropout) { return dropout.p > 0 && current_rows; }

at::Tensor lora_dropout(const at::Tensor& x, const LoraDropout& dropout) {
  if (!drops(dropout)) return x;
  const auto& rows = *current_rows;
  LORASHARD_CHECK(x.size(0) == static_cast<int64_t>(rows.size()), "dropout of {} rows, {} are known", x.size(0),
                  rows.size());
  const int64_t count = x.numel() / x.size(0);
  LORASHARD_CHECK(count <= int64_t{1} << 34, "dropout of {} elements of one image", count);
  const at::Tensor keep = at::empty(x.sizes(), at::kBool);
  for (size_t i = 0; i < rows.size(); ++i)
    fill_mask(keep.data_ptr<bool>() + static_cast<int64_t>(i) * count, count, rows[i], dropout);
  return at::where(keep.to(x.device()), x * (1 / (1 - dropout.p)), at::zeros({}, x.options()));
}

}  // namespace lorashard
