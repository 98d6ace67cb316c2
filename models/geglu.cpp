#include "models/geglu.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "models/autograd_node.h"
#include "models/simd.h"

namespace lorashard {
namespace {

using simd::Floats;
using simd::kWidth;
using torch::autograd::variable_list;

constexpr int64_t kThreadGrain = 32768;  // elements a thread should have at least

/// The share of a standard normal below x.
LORASHARD_INLINE void normal_cdf(const Floats& x, Floats& out) {
  out = x * 0.70710678118654752f;
  simd::erf(out);
  out = 0.5f + 0.5f * out;
}

LORASHARD_SIMD void forward_rows(const float* x, float* y, int64_t begin, int64_t end, int64_t width) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t j = 0; j < width; j += kWidth) {
      Floats a, b, cdf;
      simd::load(a, x + row * 2 * width + j);
      simd::load(b, x + row * 2 * width + width + j);
      normal_cdf(b, cdf);
      simd::store(y + row * width + j, a * (b * cdf));
    }
}

LORASHARD_SIMD void backward_rows(const float* x, const float* d_y, float* d_x, int64_t begin, int64_t end,
                                  int64_t width) {
  for (int64_t row = begin; row < end; ++row)
    for (int64_t j = 0; j < width; j += kWidth) {
      Floats a, b, cdf, grad;
      simd::load(a, x + row * 2 * width + j);
      simd::load(b, x + row * 2 * width + width + j);
      simd::load(grad, d_y + row * width + j);
      normal_cdf(b, cdf);
      Floats density = b * b * -0.5f;
      simd::exp(density);
      density *= 0.39894228040143268f;
      simd::store(d_x + row * 2 * width + j, grad * (b * cdf));
      simd::store(d_x + row * 2 * width + width + j, grad * a * (cdf + b * density));
    }
}

struct GegluBackward : torch::autograd::Node {
  at::Tensor x;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    const BelowAutograd guard;
    const at::Tensor d_y = grads[0].contiguous(), d_x = at::empty_like(x);
    const int64_t width = d_y.size(-1);
    const float *from = x.const_data_ptr<float>(), *grad = d_y.const_data_ptr<float>();
    float* to = d_x.data_ptr<float>();
    at::parallel_for(0, d_y.numel() / width, std::max<int64_t>(1, kThreadGrain / width),
                     [&](int64_t begin, int64_t end) { backward_rows(from, grad, to, begin, end, width); });
    return {d_x};
  }
  void release_variables() override { x = at::Tensor(); }
  std::string name() const override { return "GegluBackward"; }
};

}  // namespace

at::Tensor geglu(const at::Tensor& x) {
  const int64_t width = x.size(-1) / 2;
  if (!x.device().is_cpu() || x.scalar_type() != at::kFloat || width % kWidth != 0 || !x.is_contiguous() ||
      x.numel() == 0) {
    const auto halves = x.chunk(2, -1);
    return halves[0] * at::gelu(halves[1]);
  }
  at::Tensor y;
  {
    const BelowAutograd guard;
    auto shape = x.sizes().vec();
    shape.back() = width;
    y = at::empty(shape, x.options());
    const float* from = x.const_data_ptr<float>();
    float* to = y.data_ptr<float>();
    at::parallel_for(0, y.numel() / width, std::max<int64_t>(1, kThreadGrain / width),
                     [&](int64_t begin, int64_t end) { forward_rows(from, to, begin, end, width); });
  }
  record<GegluBackward>(
      y, [&](GegluBackward& node) { node.x = x; }, x);
  return y;
}

}  // namespace lorashard
