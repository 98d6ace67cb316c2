#include "models/fused_norm.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>

#include "models/autograd_node.h"
#include "models/simd.h"

namespace lorashard {
namespace {

using simd::Floats;
using simd::kWidth;
using torch::autograd::variable_list;

// One thread has one image: where that leaves threads idle, large images are LibTorch's.
constexpr int64_t kMaxElements = int64_t{1} << 24, kMaxElementsOfIdleThreads = int64_t{1} << 20;
// Pixels that are summed before they join the sum: they stay in cache, and rounding grows with their number, not the image's.
constexpr int64_t kBlockPixels = 64;
constexpr int64_t kThreadGrain = 32768;  // elements a thread should have at least

/// One image [pixels, channels] at a time; statistics [batch, groups].
struct Work {
  int64_t batch, pixels, channels, groups;
  float eps;
  bool silu;
  const float *x, *shift, *weight, *bias;  // shift may be null
  float *mean, *rstd;
  float* y;          // forward
  const float* d_y;  // backward
  float* d_x;
  int64_t image() const { return pixels * channels; }
  int64_t group_channels() const { return channels / groups; }
  int64_t grain() const { return std::max<int64_t>(1, kThreadGrain / image()); }
  /// Floats of scratch an image needs.
  size_t scratch() const { return static_cast<size_t>(4 * channels); }
};

/// out[c] = the mean of sums[c] over c's group.
LORASHARD_INLINE void spread_group_means(const Work& w, const float* sums, float* out) {
  const int64_t size = w.group_channels();
  const float inverse = 1.0f / static_cast<float>(size * w.pixels);
  for (int64_t g = 0; g < w.groups; ++g) {
    float total = 0;
    for (int64_t c = g * size; c < (g + 1) * size; ++c) total += sums[c];
    for (int64_t c = g * size; c < (g + 1) * size; ++c) out[c] = total * inverse;
  }
}

LORASHARD_INLINE void sigmoid(Floats& x) {
  const Floats most = Floats{} + 87.0f;
  x = -x;
  x = x > most ? most : x;
  simd::exp(x);
  x = 1.0f / (1.0f + x);
}

LORASHARD_SIMD void forward_image(const Work& w, int64_t b, float* scratch) {
  const int64_t channels = w.channels;
  const float* x = w.x + b * w.image();
  float *sums = scratch, *centre = sums + channels, *scale = centre + channels, *offset = scale + channels;
  const auto shift_at = [&](int64_t c) { return w.shift ? w.shift[b * channels + c] : 0.0f; };

  std::fill_n(sums, channels, 0.0f);
  for (int64_t begin = 0; begin < w.pixels; begin += kBlockPixels) {
    const int64_t end = std::min(w.pixels, begin + kBlockPixels);
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats part{}, value, total;
      for (int64_t p = begin; p < end; ++p) {
        simd::load(value, x + p * channels + c);
        part += value;
      }
      simd::load(total, sums + c);
      simd::store(sums + c, total + part);
    }
  }
  for (int64_t c = 0; c < channels; ++c) sums[c] += static_cast<float>(w.pixels) * shift_at(c);
  spread_group_means(w, sums, centre);
  for (int64_t g = 0; g < w.groups; ++g) w.mean[b * w.groups + g] = centre[g * w.group_channels()];
  for (int64_t c = 0; c < channels; ++c) centre[c] -= shift_at(c);

  std::fill_n(sums, channels, 0.0f);
  for (int64_t begin = 0; begin < w.pixels; begin += kBlockPixels) {
    const int64_t end = std::min(w.pixels, begin + kBlockPixels);
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats part{}, middle, value, total;
      simd::load(middle, centre + c);
      for (int64_t p = begin; p < end; ++p) {
        simd::load(value, x + p * channels + c);
        value -= middle;
        part += value * value;
      }
      simd::load(total, sums + c);
      simd::store(sums + c, total + part);
    }
  }
  spread_group_means(w, sums, scale);
  for (int64_t g = 0; g < w.groups; ++g)
    w.rstd[b * w.groups + g] = 1.0f / std::sqrt(scale[g * w.group_channels()] + w.eps);
  for (int64_t c = 0; c < channels; ++c) {
    scale[c] = w.weight[c] * w.rstd[b * w.groups + c / w.group_channels()];
    offset[c] = w.bias[c];
  }

  float* y = w.y + b * w.image();
  for (int64_t p = 0; p < w.pixels; ++p)
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats value, middle, factor, constant;
      simd::load(value, x + p * channels + c);
      simd::load(middle, centre + c);
      simd::load(factor, scale + c);
      simd::load(constant, offset + c);
      value = (value - middle) * factor + constant;
      if (w.silu) {
        Floats s = value;
        sigmoid(s);
        value *= s;
      }
      simd::store(y + p * channels + c, value);
    }
}

LORASHARD_SIMD void backward_image(const Work& w, int64_t b, float* scratch) {
  const int64_t channels = w.channels;
  const float *x = w.x + b * w.image(), *d_y = w.d_y + b * w.image();
  float *d_x = w.d_x + b * w.image(), *centre = scratch, *rstd = centre + channels, *sums = rstd + channels,
        *products = sums + channels;
  for (int64_t c = 0; c < channels; ++c) {
    const int64_t g = b * w.groups + c / w.group_channels();
    centre[c] = w.mean[g] - (w.shift ? w.shift[b * channels + c] : 0.0f);
    rstd[c] = w.rstd[g];
  }
  // d_x holds the gradient of the normalised value between the two passes.
  std::fill_n(sums, 2 * channels, 0.0f);  // and products behind them
  for (int64_t begin = 0; begin < w.pixels; begin += kBlockPixels) {
    const int64_t end = std::min(w.pixels, begin + kBlockPixels);
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats middle, factor, weight, bias, part{}, product_part{}, total, product;
      simd::load(middle, centre + c);
      simd::load(factor, rstd + c);
      simd::load(weight, w.weight + c);
      simd::load(bias, w.bias + c);
      for (int64_t p = begin; p < end; ++p) {
        Floats normed, grad;
        simd::load(normed, x + p * channels + c);
        simd::load(grad, d_y + p * channels + c);
        normed = (normed - middle) * factor;
        if (w.silu) {
          const Floats z = normed * weight + bias;
          Floats s = z;
          sigmoid(s);
          grad *= s * (1.0f + z * (1.0f - s));
        }
        grad *= weight;
        part += grad;
        product_part += grad * normed;
        simd::store(d_x + p * channels + c, grad);
      }
      simd::load(total, sums + c);
      simd::store(sums + c, total + part);
      simd::load(product, products + c);
      simd::store(products + c, product + product_part);
    }
  }
  spread_group_means(w, sums, sums);
  spread_group_means(w, products, products);
  for (int64_t p = 0; p < w.pixels; ++p)
    for (int64_t c = 0; c < channels; c += kWidth) {
      Floats normed, middle, factor, grad, mean, slope;
      simd::load(normed, x + p * channels + c);
      simd::load(middle, centre + c);
      simd::load(factor, rstd + c);
      simd::load(grad, d_x + p * channels + c);
      simd::load(mean, sums + c);
      simd::load(slope, products + c);
      normed = (normed - middle) * factor;
      simd::store(d_x + p * channels + c, factor * (grad - mean - normed * slope));
    }
}

template <class F>
void for_each_image(const Work& w, const F& f) {
  at::parallel_for(0, w.batch, w.grain(), [&](int64_t begin, int64_t end) {
    simd::Scratch scratch(w.scratch());
    for (int64_t b = begin; b < end; ++b) f(w, b, scratch.data());
  });
}

struct FusedGroupNormBackward : torch::autograd::Node {
  Work work;
  at::Tensor x, shift, weight, bias, statistics;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return {at::Tensor()};
    const BelowAutograd guard;
    const at::Tensor d_y = grads[0].contiguous(at::MemoryFormat::ChannelsLast);
    const at::Tensor d_x = at::empty_like(x, at::MemoryFormat::Preserve);
    Work w = work;
    w.d_y = d_y.const_data_ptr<float>(), w.d_x = d_x.data_ptr<float>();
    for_each_image(w, backward_image);
    return {d_x};
  }
  void release_variables() override { x = shift = statistics = at::Tensor(); }
  std::string name() const override { return "FusedGroupNormBackward"; }
};

bool fits(const at::Tensor& x, const at::Tensor& shift, const GroupNormWork& work) {
  const int64_t most = x.size(0) < at::get_num_threads() ? kMaxElementsOfIdleThreads : kMaxElements;
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && x.dim() == 4 && x.size(1) % kWidth == 0 &&
         x.numel() > 0 && x.numel() <= most && x.is_contiguous(at::MemoryFormat::ChannelsLast) &&
         work.weight.scalar_type() == at::kFloat && work.weight.is_contiguous() && work.bias.is_contiguous() &&
         (!shift.defined() || (shift.scalar_type() == at::kFloat && !shift.requires_grad()));
}

}  // namespace

at::Tensor fused_group_norm(const at::Tensor& x, const at::Tensor& shift, const GroupNormWork& work) {
  if (!fits(x, shift, work)) {
    const at::Tensor shifted = shift.defined() ? x + shift.unsqueeze(-1).unsqueeze(-1) : x;
    const at::Tensor y = at::group_norm(shifted, work.num_groups, work.weight, work.bias, work.eps);
    return work.silu ? at::silu(y) : y;
  }
  Work w{};
  at::Tensor y, statistics, rows;
  {
    const BelowAutograd guard;
    y = at::empty_like(x, at::MemoryFormat::Preserve);
    statistics = at::empty({2, x.size(0), work.num_groups}, x.options());
    if (shift.defined()) rows = shift.contiguous();
    w.batch = x.size(0), w.pixels = x.size(2) * x.size(3), w.channels = x.size(1), w.groups = work.num_groups;
    w.eps = static_cast<float>(work.eps), w.silu = work.silu;
    w.x = x.const_data_ptr<float>(), w.shift = shift.defined() ? rows.const_data_ptr<float>() : nullptr;
    w.weight = work.weight.const_data_ptr<float>(), w.bias = work.bias.const_data_ptr<float>();
    w.mean = statistics.data_ptr<float>(), w.rstd = w.mean + w.batch * w.groups;
    w.y = y.data_ptr<float>();
    for_each_image(w, forward_image);
  }
  record<FusedGroupNormBackward>(
      y,
      [&](FusedGroupNormBackward& node) {
        node.work = w;
        node.x = x;
        node.shift = rows;
        node.weight = work.weight, node.bias = work.bias;
        node.statistics = statistics;
      },
      x);
  return y;
}

}  // namespace lorashard
