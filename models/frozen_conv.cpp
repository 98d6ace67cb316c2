#include "models/frozen_conv.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "models/aligned_weight.h"
#include "models/autograd_node.h"
#include "models/safetensors.h"

namespace lorashard {
namespace {

using torch::autograd::variable_list;

// oneDNN reorders the weight (out * columns), patches copy the image (rows * columns): the fewer do less. Up to 256
// rows oneDNN's fixed cost of a call decides. Measured at 1280 channels, 8 x 8: 17 ms for patches against 81 ms.
constexpr int64_t kAlwaysPatchRows = 256;
constexpr int64_t kMaxPatchElements = int64_t{1} << 24;

struct Geometry {
  int64_t batch, channels, height, width, out_height, out_width, kernel, stride, padding;
  int64_t rows() const { return batch * out_height * out_width; }
  int64_t columns() const { return kernel * kernel * channels; }
  /// The patches are the pixels themselves.
  bool pointwise() const { return kernel == 1 && stride == 1 && padding == 0; }
  /// A one-pixel image sees the middle of the kernel only; all else multiplies padding.
  bool middle_only() const { return height == 1 && width == 1 && kernel == 3 && padding == 1; }
};

Geometry geometry(const at::Tensor& x, const at::Tensor& weight, int64_t stride, int64_t padding) {
  const int64_t kernel = weight.size(2);
  const auto out = [&](int64_t in) { return (in + 2 * padding - kernel) / stride + 1; };
  return {x.size(0), x.size(1), x.size(2), x.size(3), out(x.size(2)), out(x.size(3)), kernel, stride, padding};
}

bool by_patches(const at::Tensor& x, const at::Tensor& weight, const Geometry& geo) {
  return x.device().is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat && x.dim() == 4 &&
         geo.rows() > 0 &&
         (geo.pointwise() || (geo.rows() <= std::max(kAlwaysPatchRows, weight.size(0)) &&
                              geo.rows() * geo.columns() <= kMaxPatchElements));
}

/// Calls f(row, tap, pixel) for every tap of every patch of one image row; pixel is null where the tap is in the
/// padding.
template <class T, class F>
void for_each_tap(const Geometry& geo, T* image, int64_t row_begin, int64_t row_end, const F& f) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t b = row / (geo.out_height * geo.out_width), oy = row / geo.out_width % geo.out_height;
    const int64_t y0 = oy * geo.stride - geo.padding, x0 = row % geo.out_width * geo.stride - geo.padding;
    for (int64_t ky = 0; ky < geo.kernel; ++ky)
      for (int64_t kx = 0; kx < geo.kernel; ++kx) {
        const int64_t y = y0 + ky, x = x0 + kx;
        const bool inside = y >= 0 && y < geo.height && x >= 0 && x < geo.width;
        f(row, ky * geo.kernel + kx,
          inside ? image + ((b * geo.height + y) * geo.width + x) * geo.channels : static_cast<T*>(nullptr));
      }
  }
}

/// x, channels_last, as [rows, columns]: each row the pixels under one output pixel.
at::Tensor patches(const Geometry& geo, const at::Tensor& x) {
  at::Tensor result = at::empty({geo.rows(), geo.columns()}, x.options());
  const float* image = x.const_data_ptr<float>();
  float* out = result.data_ptr<float>();
  const int64_t channels = geo.channels, columns = geo.columns();
  at::parallel_for(0, geo.rows(), std::max<int64_t>(1, 32768 / columns), [&](int64_t begin, int64_t end) {
    for_each_tap(geo, image, begin, end, [=](int64_t row, int64_t tap, const float* pixel) {
      float* to = out + row * columns + tap * channels;
      if (pixel)
        std::memcpy(to, pixel, static_cast<size_t>(channels) * sizeof(float));
      else
        std::memset(to, 0, static_cast<size_t>(channels) * sizeof(float));
    });
  });
  return result;
}

/// The reverse: adds every patch's pixels up. One thread an image, so the order of the sums is fixed.
at::Tensor sum_patches(const Geometry& geo, const at::Tensor& columns) {
  at::Tensor result = at::zeros({geo.batch, geo.height, geo.width, geo.channels}, columns.options());
  const float* from = columns.const_data_ptr<float>();
  float* image = result.data_ptr<float>();
  const int64_t channels = geo.channels, width = geo.columns(), rows = geo.out_height * geo.out_width;
  at::parallel_for(0, geo.batch, 1, [&](int64_t begin, int64_t end) {
    for_each_tap(geo, image, begin * rows, end * rows, [=](int64_t row, int64_t tap, float* pixel) {
      if (!pixel) return;
      const float* patch = from + row * width + tap * channels;
      for (int64_t c = 0; c < channels; ++c) pixel[c] += patch[c];
    });
  });
  return result;
}

/// The weight as [out, columns], laid out as the patches are.
at::Tensor matrix(const Geometry& geo, const at::Tensor& weight) {
  const at::Tensor flat = weight.permute({0, 2, 3, 1}).view({weight.size(0), geo.columns()});
  return geo.middle_only() ? flat.narrow(1, 4 * geo.channels, geo.channels) : flat;
}

/// [rows, channels] <-> [B, channels, h, w] in channels_last: views.
at::Tensor as_rows(const at::Tensor& image) {
  return image.contiguous(at::MemoryFormat::ChannelsLast).permute({0, 2, 3, 1}).view({-1, image.size(1)});
}
at::Tensor as_image(const at::Tensor& rows, int64_t batch, int64_t height, int64_t width) {
  return rows.view({batch, height, width, rows.size(-1)}).permute({0, 3, 1, 2});
}

struct FrozenConv2dBackward : torch::autograd::Node {
  Geometry geo;
  at::Tensor weight;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined() || !task_should_compute_output(0)) return {at::Tensor()};
    const BelowAutograd guard;
    const at::Tensor columns = at::mm(as_rows(grads[0]), matrix(geo, weight));
    if (geo.pointwise() || geo.middle_only()) return {as_image(columns, geo.batch, geo.height, geo.width)};
    return {sum_patches(geo, columns).permute({0, 3, 1, 2})};
  }
  std::string name() const override { return "FrozenConv2dBackward"; }
};

/// Of at::conv2d. torch's own node keeps the input, which only a gradient of the weight would need.
struct FrozenConv2dByLibraryBackward : torch::autograd::Node {
  std::vector<int64_t> input_sizes;
  at::MemoryFormat input_format = at::MemoryFormat::Contiguous;
  at::Tensor weight;
  int64_t stride = 1, padding = 0;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined() || !task_should_compute_output(0)) return {at::Tensor()};
    const BelowAutograd guard;
    const at::Tensor shape_of_input = at::empty(input_sizes, grads[0].options(), input_format);  // its values are never read
    return {std::get<0>(at::convolution_backward(grads[0], shape_of_input, weight, /*bias_sizes=*/at::OptionalIntArrayRef(),
                                                 {stride, stride}, {padding, padding}, /*dilation=*/{1, 1}, /*transposed=*/false,
                                                 /*output_padding=*/{0, 0}, /*groups=*/1, /*output_mask=*/{true, false, false}))};
  }
  std::string name() const override { return "FrozenConv2dByLibraryBackward"; }
};

at::Tensor conv2d_by_library(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t stride, int64_t padding) {
  at::Tensor y;
  {
    const BelowAutograd guard;
    y = at::conv2d(x, weight, bias, {stride, stride}, {padding, padding});
  }
  record<FrozenConv2dByLibraryBackward>(
      y,
      [&](FrozenConv2dByLibraryBackward& node) {
        node.input_sizes = x.sizes().vec();
        node.input_format = x.suggest_memory_format();
        node.weight = weight;
        node.stride = stride;
        node.padding = padding;
      },
      x);
  return y;
}

}  // namespace

at::Tensor frozen_conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, int64_t stride,
                         int64_t padding) {
  const Geometry geo = geometry(x, weight, stride, padding);
  if (!by_patches(x, weight, geo)) return conv2d_by_library(x, weight, bias, stride, padding);
  if (!weight.is_contiguous(at::MemoryFormat::ChannelsLast)) {
    const at::NoGradGuard no_grad;
    const at::Tensor laid_out = weight.contiguous(at::MemoryFormat::ChannelsLast);
    release_mapped_pages(weight);
    weight.set_data(laid_out);
  }
  at::Tensor y;
  {
    const BelowAutograd guard;
    const at::Tensor columns =
        geo.pointwise() || geo.middle_only() ? as_rows(x) : patches(geo, x.contiguous(at::MemoryFormat::ChannelsLast));
    const at::Tensor kernels = aligned_weight(matrix(geo, weight), geo.rows());
    y = as_image(at::addmm(bias, columns, kernels.t()), geo.batch, geo.out_height, geo.out_width);
  }
  record<FrozenConv2dBackward>(
      y,
      [&](FrozenConv2dBackward& node) {
        node.geo = geo;
        node.weight = weight;
      },
      x);
  return y;
}

}  // namespace lorashard
