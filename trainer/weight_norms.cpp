#include "trainer/weight_norms.h"

#include <ATen/ATen.h>

#include <cmath>

namespace lorashard {

void limit_weight_norms(const LoraAdapter& adapter, double max_norm) {
  const at::NoGradGuard no_grad;
  for (const LoraModule& module : adapter.modules()) {
    const LoraPair& pair = *module.layer->lora;
    // ||up down||^2 is the sum over up^T up times down down^T, element by element: no product is as large as the layer.
    const at::Tensor down = pair.down.flatten(1).to(at::kDouble), up = pair.up.flatten(1).to(at::kDouble);
    const at::Tensor squares = (at::mm(up.t(), up) * at::mm(down, down.t())).sum();
    const at::Tensor norm = squares.clamp_min(0).sqrt() * std::abs(pair.scale);
    const at::Tensor factor = (max_norm / norm).clamp_max(1).sqrt().to(at::kFloat);  // 1 where the norm is 0
    pair.down.mul_(factor);
    pair.up.mul_(factor);
  }
}

}  // namespace lorashard
