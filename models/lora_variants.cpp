#include "models/lora_variants.h"

#include <ATen/ATen.h>

#include "models/frozen_conv.h"
#include "models/lora_linear.h"

namespace lorashard {
namespace {

/// magnitude / norm, differentiable in the magnitude alone (section 4.3 of the paper), in the type of x.
at::Tensor dora_factor(const at::Tensor& weight, const LoraPair& lora, at::ScalarType dtype) {
  return (lora.magnitude / dora_norm(weight, lora)).to(dtype);
}

/// y without bias, and y of the dropped input where that is another (peft: then both parts see the dropped input).
at::Tensor with_dora(const at::Tensor& base, const at::Tensor& base_of_dropped, const at::Tensor& low_rank,
                     const at::Tensor& factor) {
  if (base.is_same(base_of_dropped)) return factor * (base + low_rank);
  return base + (factor - 1) * base_of_dropped + factor * low_rank;
}

}  // namespace

bool is_plain(const LoraPair& lora) { return !lora.magnitude.defined() && !drops(lora.dropout); }

at::Tensor dora_norm(const at::Tensor& weight, const LoraPair& lora) {
  const at::NoGradGuard no_grad;
  const at::Tensor low_rank = at::mm(lora.up.flatten(1), lora.down.flatten(1)).to(weight.device());
  return at::linalg_vector_norm(weight.flatten(1).to(at::kFloat) + low_rank * lora.scale, 2, at::IntArrayRef{1});
}

at::Tensor lora_variant_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                               const LoraPair& lora, const at::Tensor& residual) {
  const at::Tensor dropped = lora_dropout(x, lora.dropout);
  const auto dtype = x.scalar_type();
  const at::Tensor low = lora_rank_dropout(at::linear(dropped, lora.down.to(dtype)), lora.dropout, dropped.dim() - 1);
  const at::Tensor low_rank = at::linear(low, lora.up.to(dtype)) * lora.scale;
  if (!lora.magnitude.defined()) return frozen_linear(x, weight, bias, residual) + low_rank;
  const at::Tensor base = frozen_linear(x, weight, {});
  const at::Tensor base_of_dropped = dropped.is_same(x) ? base : frozen_linear(dropped, weight, {});
  at::Tensor y = with_dora(base, base_of_dropped, low_rank, dora_factor(weight, lora, dtype));
  if (bias.defined()) y = y + bias;
  return residual.defined() ? y + residual : y;
}

at::Tensor lora_conv2d(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias, const LoraPair& lora,
                       int64_t stride, int64_t padding) {
  const at::Tensor dropped = lora_dropout(x, lora.dropout);
  const auto dtype = x.scalar_type();
  const at::Tensor low = lora_rank_dropout(at::conv2d(dropped, lora.down.to(dtype), {}, {stride, stride}, {padding, padding}),
                                           lora.dropout, /*rank_dim=*/1);
  const at::Tensor low_rank = at::conv2d(low, lora.up.to(dtype)) * lora.scale;
  const at::Tensor y = frozen_conv2d(x, weight, bias, stride, padding);
  if (!lora.magnitude.defined()) return y + low_rank;
  const auto channels = [](const at::Tensor& values) { return values.view({1, -1, 1, 1}); };
  const at::Tensor base = bias.defined() ? y - channels(bias) : y;
  const at::Tensor base_of_dropped =
      dropped.is_same(x) ? base : frozen_conv2d(dropped, weight, at::zeros_like(bias), stride, padding);
  const at::Tensor result = with_dora(base, base_of_dropped, low_rank, channels(dora_factor(weight, lora, dtype)));
  return bias.defined() ? result + channels(bias) : result;
}

}  // namespace lorashard
