#include "models/low_rank.h"

#include <ATen/ATen.h>

#include <cstring>

#include "models/simd.h"

namespace lorashard::low_rank {
namespace {

using simd::Floats;
using simd::kWidth;

constexpr int64_t kStep = 4;  // ranks done together
constexpr int64_t kMaxWork = int64_t{1} << 20;

struct Work {
  int64_t rows, in, out, rank;
  float scale;
  const float *x, *g, *down;
  const float* up_columns;  // up, turned: [rank, out]
  float *low, *y, *dx;      // dx may be null
  float *grad_down, *grad_up_columns;
};

/// out[i] = scale * sum over j of row[j] * columns[i][j], for 4 i.
LORASHARD_INLINE void project(const float* row, const float* columns, int64_t width, float scale, float* out) {
  Floats totals[kStep] = {};
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats value;
    simd::load(value, row + j);
    for (int64_t i = 0; i < kStep; ++i) {
      Floats column;
      simd::load(column, columns + i * width + j);
      simd::fma(totals[i], value, column);
    }
  }
  simd::sum4(totals, out);
  for (int64_t i = 0; i < kStep; ++i) out[i] *= scale;
}

/// row[j] += sum over 4 i of low[i] * columns[i][j].
LORASHARD_INLINE void expand(const float* low, const float* columns, int64_t width, float* row) {
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats value;
    simd::load(value, row + j);
    for (int64_t i = 0; i < kStep; ++i) {
      Floats column;
      simd::load(column, columns + i * width + j);
      simd::fma(value, low[i], column);
    }
    simd::store(row + j, value);
  }
}

/// columns[i][j] += sum over 4 rows n of low[n][i] * rows[n][j], for 4 i. `lows` are `low_step` apart.
template <int64_t kRows>
LORASHARD_INLINE void add_outer(const float* lows, int64_t low_step, const float* rows, int64_t width, float* columns) {
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats values[kRows];
    for (int64_t n = 0; n < kRows; ++n) simd::load(values[n], rows + n * width + j);
    for (int64_t i = 0; i < kStep; ++i) {
      Floats column;
      simd::load(column, columns + i * width + j);
      for (int64_t n = 0; n < kRows; ++n) simd::fma(column, lows[n * low_step + i], values[n]);
      simd::store(columns + i * width + j, column);
    }
  }
}

LORASHARD_SIMD void forward_rows(const Work& w) {
  for (int64_t n = 0; n < w.rows; ++n)
    for (int64_t i = 0; i < w.rank; i += kStep) {
      float* low = w.low + n * w.rank + i;
      project(w.x + n * w.in, w.down + i * w.in, w.in, w.scale, low);
      expand(low, w.up_columns + i * w.out, w.out, w.y + n * w.out);
    }
}

template <int64_t kRows>
LORASHARD_INLINE void backward_rows_of(const Work& w, int64_t n, float* g_lows) {
  for (int64_t i = 0; i < w.rank; i += kStep) {
    for (int64_t m = 0; m < kRows; ++m) {
      float* g_low = g_lows + m * kStep;
      project(w.g + (n + m) * w.out, w.up_columns + i * w.out, w.out, w.scale, g_low);
      if (w.dx) expand(g_low, w.down + i * w.in, w.in, w.dx + (n + m) * w.in);
    }
    add_outer<kRows>(g_lows, kStep, w.x + n * w.in, w.in, w.grad_down + i * w.in);
    add_outer<kRows>(w.low + n * w.rank + i, w.rank, w.g + n * w.out, w.out, w.grad_up_columns + i * w.out);
  }
}

LORASHARD_SIMD void backward_rows(const Work& w) {
  constexpr int64_t kTogether = 4;
  float g_lows[kTogether * kStep];
  int64_t n = 0;
  for (; n + kTogether <= w.rows; n += kTogether) backward_rows_of<kTogether>(w, n, g_lows);
  for (; n < w.rows; ++n) backward_rows_of<1>(w, n, g_lows);
}

/// up [out, rank] as [rank, out].
void to_columns(const at::Tensor& up, float* columns) {
  const int64_t out = up.size(0), rank = up.size(1);
  const float* from = up.const_data_ptr<float>();
  for (int64_t i = 0; i < rank; i += kStep)
    for (int64_t o = 0; o < out; o += 4) simd::transpose4(from + o * rank + i, rank, columns + i * out + o, out);
}

bool usable(const at::Tensor& parameter) {
  return parameter.is_contiguous() && parameter.grad().defined() && parameter.grad().is_contiguous() &&
         parameter.grad().scalar_type() == at::kFloat;
}

}  // namespace

bool fits(const at::Tensor& x, const at::Tensor& y, const LoraPair& lora) {
  const int64_t in = lora.down.size(1), out = lora.up.size(0), rank = lora.down.size(0);
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && y.scalar_type() == at::kFloat && in % kWidth == 0 &&
         out % kWidth == 0 && rank % kStep == 0 && x.size(0) * (in + out) * rank <= kMaxWork && usable(lora.down) &&
         usable(lora.up);
}

at::Tensor forward(const at::Tensor& x, const LoraPair& lora, const at::Tensor& y) {
  const int64_t rank = lora.down.size(0);
  at::Tensor low = at::empty({x.size(0), rank}, x.options());
  const simd::Scratch up_columns(static_cast<size_t>(lora.up.numel()));
  to_columns(lora.up, up_columns.data());
  Work w{};
  w.rows = x.size(0), w.in = x.size(1), w.out = y.size(1), w.rank = rank, w.scale = static_cast<float>(lora.scale);
  w.x = x.const_data_ptr<float>(), w.down = lora.down.const_data_ptr<float>(), w.up_columns = up_columns.data();
  w.low = low.data_ptr<float>(), w.y = y.data_ptr<float>();
  forward_rows(w);
  return low;
}

void backward(const at::Tensor& x, const at::Tensor& low, const at::Tensor& g, const LoraPair& lora,
              const at::Tensor& dx) {
  const size_t size = static_cast<size_t>(lora.up.numel());
  const simd::Scratch up_columns(size), grad_up_columns(size);
  to_columns(lora.up, up_columns.data());
  std::memset(grad_up_columns.data(), 0, size * sizeof(float));
  Work w{};
  w.rows = x.size(0), w.in = x.size(1), w.out = g.size(1), w.rank = low.size(1);
  w.scale = static_cast<float>(lora.scale);
  w.x = x.const_data_ptr<float>(), w.g = g.const_data_ptr<float>(), w.down = lora.down.const_data_ptr<float>();
  w.up_columns = up_columns.data();
  w.low = low.data_ptr<float>(), w.dx = dx.defined() ? dx.data_ptr<float>() : nullptr;
  w.grad_down = lora.down.mutable_grad().data_ptr<float>(), w.grad_up_columns = grad_up_columns.data();
  backward_rows(w);
  float* grad_up = lora.up.mutable_grad().data_ptr<float>();
  for (int64_t o = 0; o < w.out; ++o)
    for (int64_t i = 0; i < w.rank; ++i) grad_up[o * w.rank + i] += w.grad_up_columns[i * w.out + o];
}

}  // namespace lorashard::low_rank
