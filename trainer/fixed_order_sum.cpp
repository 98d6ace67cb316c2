#include "trainer/fixed_order_sum.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr int64_t kBlock = 8192;  // elements summed by one thread in one fixed order
constexpr int kLanes = 8;         // partial sums side by side, so that the loop vectorises without reordering

/// Sum of term(0) ... term(count - 1).
template <class Term>
double block_sum(int64_t count, const Term& term) {
  std::array<double, kLanes> lane{};
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lane[j] += term(i + j);
  }
  for (; i < count; ++i) lane[0] += term(i);
  return ((lane[0] + lane[1]) + (lane[2] + lane[3])) + ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

template <class Term>
double sum(int64_t count, const Term& term) {
  std::vector<double> block_sums((count + kBlock - 1) / kBlock);
  at::parallel_for(0, int64_t(block_sums.size()), 8, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kBlock;
      block_sums[b] = block_sum(std::min(kBlock, count - first), [&](int64_t i) { return term(first + i); });
    }
  });
  double total = 0;
  for (double block_sum : block_sums) total += block_sum;
  return total;
}

void check(const at::Tensor& x) {
  LORASHARD_CHECK(x.defined() && x.is_contiguous() && x.scalar_type() == at::kFloat,
                  "fixed-order sum: expected a contiguous fp32 tensor");
}

/// [..., rows, columns] as count matrices.
struct Matrices {
  int64_t count, rows, columns;
};
Matrices matrices_of(const at::Tensor& x) {
  check(x);
  LORASHARD_CHECK(x.dim() >= 2 && x.numel() > 0, "means of rows or columns: expected two dimensions or more");
  const int64_t rows = x.size(-2), columns = x.size(-1);
  return {x.numel() / (rows * columns), rows, columns};
}

std::vector<int64_t> sizes_without(const at::Tensor& x, int64_t dimension) {
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.erase(sizes.end() + dimension);
  return sizes;
}

}  // namespace

double sum_of_squares(const at::Tensor& x) {
  check(x);
  if (!x.is_cpu()) return x.to(at::kDouble).square().sum().item<double>();
  const float* values = x.const_data_ptr<float>();
  return sum(x.numel(), [=](int64_t i) { return double(values[i]) * double(values[i]); });
}

double sum_of_magnitudes(const at::Tensor& x) {
  check(x);
  if (!x.is_cpu()) return x.abs().sum(at::kDouble).item<double>();
  const float* values = x.const_data_ptr<float>();
  return sum(x.numel(), [=](int64_t i) { return std::abs(double(values[i])); });
}

double sum_of_products(const at::Tensor& x, const at::Tensor& y) {
  check(x);
  check(y);
  LORASHARD_CHECK(x.numel() == y.numel() && x.device() == y.device(), "sum of products of unlike tensors");
  if (!x.is_cpu()) return x.to(at::kDouble).mul_(y).sum().item<double>();
  const float *a = x.const_data_ptr<float>(), *b = y.const_data_ptr<float>();
  return sum(x.numel(), [=](int64_t i) { return double(a[i]) * double(b[i]); });
}

at::Tensor row_means(const at::Tensor& x) {
  const auto [count, rows, columns] = matrices_of(x);
  if (!x.is_cpu()) return x.mean(at::IntArrayRef({-1}));
  const at::Tensor means = at::empty(sizes_without(x, -1), x.options());
  const float* row = x.const_data_ptr<float>();
  float* mean = means.mutable_data_ptr<float>();
  for (int64_t i = 0; i < count * rows; ++i, row += columns)
    mean[i] = float(block_sum(columns, [row](int64_t j) { return double(row[j]); }) / double(columns));
  return means;
}

at::Tensor column_means(const at::Tensor& x) {
  const auto [count, rows, columns] = matrices_of(x);
  if (!x.is_cpu()) return x.mean(at::IntArrayRef({-2}));
  const at::Tensor means = at::empty(sizes_without(x, -2), x.options());
  const float* values = x.const_data_ptr<float>();
  float* mean = means.mutable_data_ptr<float>();
  std::vector<double> sums(columns);
  for (int64_t i = 0; i < count; ++i) {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t row = 0; row < rows; ++row, values += columns)
      for (int64_t j = 0; j < columns; ++j) sums[j] += double(values[j]);
    for (int64_t j = 0; j < columns; ++j) *mean++ = float(sums[j] / double(rows));
  }
  return means;
}

}  // namespace lorashard
