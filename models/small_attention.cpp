#include "models/small_attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "models/autograd_node.h"
#include "models/simd.h"

namespace lorashard {
namespace {

using simd::Floats;
using simd::kWidth;
using torch::autograd::variable_list;

constexpr int64_t kMaxKeys = 256, kMaxHeadDim = 64;
constexpr int64_t kMaxProbabilities = int64_t{1} << 21;
constexpr int64_t kThreadGrain = 16384;  // probabilities a thread should have at least

/// Sizes and where a head's rows lie: [batch, tokens, heads * head_dim], one head after the other in a row.
struct Shape {
  int64_t batch, heads, queries, keys, head_dim;
  int64_t row() const { return heads * head_dim; }
  int64_t padded_keys() const { return (keys + kWidth - 1) / kWidth * kWidth; }
  int64_t query_offset(int64_t b, int64_t h) const { return b * queries * row() + h * head_dim; }
  int64_t key_offset(int64_t b, int64_t h) const { return b * keys * row() + h * head_dim; }
  int64_t grain() const { return std::max<int64_t>(1, kThreadGrain / (queries * padded_keys())); }
};

Shape shape_of(const at::Tensor& q, const at::Tensor& k, int64_t heads) {
  return {q.size(0), heads, q.size(1), k.size(1), q.size(2) / heads};
}

struct Forward {
  Shape shape;
  const float *q, *k, *v;
  float *out, *probabilities;  // [batch * heads, queries, padded_keys], 0 in the padding
};

struct Backward {
  Shape shape;
  const float *q, *k, *v, *probabilities, *d_out;
  float *d_q, *d_k, *d_v;
};

// All loops run along the keys: a head's keys and values are turned to [head_dim, padded_keys] first. kDim is head_dim
// where it is known to the compiler, else 0: loops over 4 to 16 dimensions are worth unrolling.

template <int64_t kDim>
LORASHARD_INLINE int64_t dim(const Shape& s) {
  return kDim > 0 ? kDim : s.head_dim;
}

template <int64_t kDim>
LORASHARD_INLINE void transpose_in(const Shape& s, const float* rows, float* columns) {
  const int64_t width = s.padded_keys(), step = s.row();
  int64_t j = 0;
  if (dim<kDim>(s) % 4 == 0)
    for (; j + 4 <= s.keys; j += 4)
      for (int64_t d = 0; d < dim<kDim>(s); d += 4)
        simd::transpose4(rows + j * step + d, step, columns + d * width + j, width);
  for (; j < s.keys; ++j)
    for (int64_t d = 0; d < dim<kDim>(s); ++d) columns[d * width + j] = rows[j * step + d];
  for (int64_t d = 0; d < dim<kDim>(s); ++d)
    for (j = s.keys; j < width; ++j) columns[d * width + j] = 0;
}

template <int64_t kDim>
LORASHARD_INLINE void transpose_out(const Shape& s, const float* columns, float* rows) {
  const int64_t width = s.padded_keys(), step = s.row();
  int64_t j = 0;
  if (dim<kDim>(s) % 4 == 0)
    for (; j + 4 <= s.keys; j += 4)
      for (int64_t d = 0; d < dim<kDim>(s); d += 4)
        simd::transpose4(columns + d * width + j, width, rows + j * step + d, step);
  for (; j < s.keys; ++j)
    for (int64_t d = 0; d < dim<kDim>(s); ++d) rows[j * step + d] = columns[d * width + j];
}

/// out[j] = sum over d of x[d] * columns[d][j], for the 16 keys from j on.
template <int64_t kDim>
LORASHARD_INLINE void combine(const Shape& s, const float* x, const float* columns, int64_t j, Floats& out) {
  out = Floats{};
  for (int64_t d = 0; d < dim<kDim>(s); ++d) {
    Floats column;
    simd::load(column, columns + d * s.padded_keys() + j);
    simd::fma(out, x[d], column);
  }
}

/// total = the products of x[j] and column[j], added by lane.
LORASHARD_INLINE void multiply_add(const Shape& s, const float* x, const float* column, Floats& total) {
  total = Floats{};
  for (int64_t j = 0; j < s.padded_keys(); j += kWidth) {
    Floats a, b;
    simd::load(a, x + j);
    simd::load(b, column + j);
    simd::fma(total, a, b);
  }
}

/// out[d] = sum over j of x[j] * columns[d][j].
template <int64_t kDim>
LORASHARD_INLINE void reduce(const Shape& s, const float* x, const float* columns, float* out) {
  const int64_t width = s.padded_keys();
  int64_t d = 0;
  for (; d + 4 <= dim<kDim>(s); d += 4) {
    Floats totals[4];
    for (int64_t i = 0; i < 4; ++i) multiply_add(s, x, columns + (d + i) * width, totals[i]);
    simd::sum4(totals, out + d);
  }
  for (; d < dim<kDim>(s); ++d) {
    Floats total;
    multiply_add(s, x, columns + d * width, total);
    out[d] = simd::sum(total);
  }
}

/// columns[d][j] += x[d] * y, for the 16 keys from j on.
template <int64_t kDim>
LORASHARD_INLINE void add_outer(const Shape& s, const float* x, const Floats& y, float* columns, int64_t j) {
  for (int64_t d = 0; d < dim<kDim>(s); ++d) {
    Floats column;
    simd::load(column, columns + d * s.padded_keys() + j);
    simd::fma(column, x[d], y);
    simd::store(columns + d * s.padded_keys() + j, column);
  }
}

/// row = softmax of `scale` * query keys over the keys that are there, 0 in the padding.
template <int64_t kDim>
LORASHARD_INLINE void softmax_row(const Shape& s, const float* query, const float* keys, float scale, float* row) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  const int64_t width = s.padded_keys(), last = width - kWidth;
  // Comparisons with vectors, not stores of single floats into the row: a vector load right after those would wait.
  Floats index;
  simd::iota(index);
  const auto there = index < Floats{} + static_cast<float>(s.keys - last);
  Floats largest = Floats{} + kLowest, total{};
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats scores;
    combine<kDim>(s, query, keys, j, scores);
    scores *= scale;
    if (j == last) scores = there ? scores : Floats{} + kLowest;
    largest = scores > largest ? scores : largest;
    simd::store(row + j, scores);
  }
  const float most = simd::max(largest);
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats p;
    simd::load(p, row + j);
    p -= most;
    simd::exp(p);
    if (j == last) p = there ? p : Floats{};
    total += p;
    simd::store(row + j, p);
  }
  const float inverse = 1.0f / simd::sum(total);
  for (int64_t j = 0; j < width; j += kWidth) {
    Floats p;
    simd::load(p, row + j);
    simd::store(row + j, p * inverse);
  }
}

template <int64_t kDim>
LORASHARD_INLINE void forward_heads_of(const Forward& f, int64_t begin, int64_t end, float* scratch) {
  const Shape s = f.shape;
  const int64_t width = s.padded_keys();
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  float *keys = scratch, *values = scratch + s.head_dim * width;
  for (int64_t head = begin; head < end; ++head) {
    const int64_t b = head / s.heads, h = head % s.heads;
    transpose_in<kDim>(s, f.k + s.key_offset(b, h), keys);
    transpose_in<kDim>(s, f.v + s.key_offset(b, h), values);
    for (int64_t i = 0; i < s.queries; ++i) {
      const int64_t at = s.query_offset(b, h) + i * s.row();
      float* row = f.probabilities + (head * s.queries + i) * width;
      softmax_row<kDim>(s, f.q + at, keys, scale, row);
      reduce<kDim>(s, row, values, f.out + at);
    }
  }
}

template <int64_t kDim>
LORASHARD_INLINE void backward_heads_of(const Backward& f, int64_t begin, int64_t end, float* scratch) {
  const Shape s = f.shape;
  const int64_t width = s.padded_keys(), size = s.head_dim * width;
  const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
  float *keys = scratch, *values = keys + size, *d_keys = values + size, *d_values = d_keys + size,
        *d_scores = d_values + size;
  for (int64_t head = begin; head < end; ++head) {
    const int64_t b = head / s.heads, h = head % s.heads;
    transpose_in<kDim>(s, f.k + s.key_offset(b, h), keys);
    transpose_in<kDim>(s, f.v + s.key_offset(b, h), values);
    std::memset(d_keys, 0, static_cast<size_t>(2 * size) * sizeof(float));
    for (int64_t i = 0; i < s.queries; ++i) {
      const int64_t at = s.query_offset(b, h) + i * s.row();
      const float *d_out = f.d_out + at, *row = f.probabilities + (head * s.queries + i) * width;
      Floats total{};
      for (int64_t j = 0; j < width; j += kWidth) {
        Floats p, d_p;
        simd::load(p, row + j);
        add_outer<kDim>(s, d_out, p, d_values, j);
        combine<kDim>(s, d_out, values, j, d_p);
        simd::store(d_scores + j, d_p);
        simd::fma(total, p, d_p);
      }
      const float mean = simd::sum(total);
      for (int64_t j = 0; j < width; j += kWidth) {
        Floats p, d_s;
        simd::load(p, row + j);
        simd::load(d_s, d_scores + j);
        d_s = p * (d_s - mean) * scale;
        simd::store(d_scores + j, d_s);
        add_outer<kDim>(s, f.q + at, d_s, d_keys, j);
      }
      reduce<kDim>(s, d_scores, keys, f.d_q + at);
    }
    transpose_out<kDim>(s, d_keys, f.d_k + s.key_offset(b, h));
    transpose_out<kDim>(s, d_values, f.d_v + s.key_offset(b, h));
  }
}

LORASHARD_SIMD void forward_heads(const Forward& f, int64_t begin, int64_t end, float* scratch) {
  switch (f.shape.head_dim) {
    case 4:
      return forward_heads_of<4>(f, begin, end, scratch);
    case 8:
      return forward_heads_of<8>(f, begin, end, scratch);
    case 16:
      return forward_heads_of<16>(f, begin, end, scratch);
    default:
      return forward_heads_of<0>(f, begin, end, scratch);
  }
}

LORASHARD_SIMD void backward_heads(const Backward& f, int64_t begin, int64_t end, float* scratch) {
  switch (f.shape.head_dim) {
    case 4:
      return backward_heads_of<4>(f, begin, end, scratch);
    case 8:
      return backward_heads_of<8>(f, begin, end, scratch);
    case 16:
      return backward_heads_of<16>(f, begin, end, scratch);
    default:
      return backward_heads_of<0>(f, begin, end, scratch);
  }
}

struct SmallAttentionBackward : torch::autograd::Node {
  Shape shape;
  at::Tensor q, k, v, probabilities;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {{}, {}, {}};
    const BelowAutograd guard;
    const at::Tensor d_out = grads[0].contiguous();
    at::Tensor d_q = at::empty_like(q), d_k = at::empty_like(k), d_v = at::empty_like(v);
    const Backward work{shape,
                        q.const_data_ptr<float>(),
                        k.const_data_ptr<float>(),
                        v.const_data_ptr<float>(),
                        probabilities.const_data_ptr<float>(),
                        d_out.const_data_ptr<float>(),
                        d_q.data_ptr<float>(),
                        d_k.data_ptr<float>(),
                        d_v.data_ptr<float>()};
    const size_t scratch_size = static_cast<size_t>((4 * shape.head_dim + 1) * shape.padded_keys());
    at::parallel_for(0, shape.batch * shape.heads, shape.grain(), [&](int64_t begin, int64_t end) {
      simd::Scratch scratch(scratch_size);
      backward_heads(work, begin, end, scratch.data());
    });
    return {d_q, d_k, d_v};
  }
  void release_variables() override { q = k = v = probabilities = at::Tensor(); }
  std::string name() const override { return "SmallAttentionBackward"; }
};

}  // namespace

bool is_small_attention(const at::Tensor& q, const at::Tensor& k, int64_t heads) {
  const Shape s = shape_of(q, k, heads);
  return q.device().is_cpu() && q.scalar_type() == at::kFloat && k.scalar_type() == at::kFloat && s.queries > 0 &&
         s.keys > 0 && s.keys <= kMaxKeys && s.head_dim <= kMaxHeadDim &&
         s.batch * s.heads * s.queries * s.padded_keys() <= kMaxProbabilities;
}

at::Tensor small_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, int64_t heads) {
  const Shape shape = shape_of(q, k, heads);
  at::Tensor q_rows, k_rows, v_rows, out, probabilities;
  {
    const BelowAutograd guard;
    q_rows = q.contiguous(), k_rows = k.contiguous(), v_rows = v.contiguous();
    out = at::empty_like(q_rows);
    probabilities = at::empty({shape.batch * shape.heads, shape.queries, shape.padded_keys()}, q.options());
    const Forward work{shape,
                       q_rows.const_data_ptr<float>(),
                       k_rows.const_data_ptr<float>(),
                       v_rows.const_data_ptr<float>(),
                       out.data_ptr<float>(),
                       probabilities.data_ptr<float>()};
    const size_t scratch_size = static_cast<size_t>(2 * shape.head_dim * shape.padded_keys());
    at::parallel_for(0, shape.batch * shape.heads, shape.grain(), [&](int64_t begin, int64_t end) {
      simd::Scratch scratch(scratch_size);
      forward_heads(work, begin, end, scratch.data());
    });
  }
  record<SmallAttentionBackward>(
      out,
      [&](SmallAttentionBackward& node) {
        node.shape = shape;
        node.q = q_rows, node.k = k_rows, node.v = v_rows;
        node.probabilities = probabilities;
      },
      q, k, v);
  return out;
}

}  // namespace lorashard
