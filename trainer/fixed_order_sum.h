// Sums of fp32 vectors in double and in one fixed order: blocks of a fixed size, each summed in one order and all added
// in one order, so that the bits don't depend on the number of threads. Used by clipping and by the optimizers.
#pragma once
#include <ATen/core/Tensor.h>

namespace lorashard {

/// Tensors are fp32 and contiguous. On a GPU the sums are at::sum's in double, which repeats bit for bit on one kind of
/// GPU.
double sum_of_squares(const at::Tensor& x);
double sum_of_magnitudes(const at::Tensor& x);
double sum_of_products(const at::Tensor& x, const at::Tensor& y);

/// Means over the last and over the last but one dimension of `x` [..., rows, columns]: [..., rows], [..., columns],
/// fp32.
at::Tensor row_means(const at::Tensor& x);
at::Tensor column_means(const at::Tensor& x);

}  // namespace lorashard
