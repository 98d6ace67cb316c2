#include "trainer/weight_norms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "models/stable_diffusion.h"
#include "tests/support/temp_dir.h"

namespace lorashard {
namespace {

double norm_of_change(const LoraPair& pair) {
  return at::mm(pair.up.flatten(1).to(at::kDouble), pair.down.flatten(1).to(at::kDouble)).norm().item<double>() * pair.scale;
}

TEST(WeightNorms, LayersAboveTheLimitComeDownToItAndTheOthersStay) {
  const TempDir folder;
  init_base("tiny-sd15", folder / "base", 1, "");
  const StableDiffusion base = load_stable_diffusion(folder / "base");
  LoraAdapter adapter;
  adapter.add("unet", *base.unet, {.rank = 3, .alpha = 6, .target_modules = {"to_q", "to_v", "conv1"}});
  adapter.allocate(1);
  const at::NoGradGuard no_grad;
  // Norms around the limit in linear layers and convolutions; one layer's up is still 0.
  constexpr double kLimit = 0.5;
  for (size_t i = 1; i < adapter.modules().size(); ++i) {
    const LoraPair& pair = *adapter.modules()[i].layer->lora;
    pair.up.copy_(at::linspace(-1, 1, pair.up.numel()).view_as(pair.up));
    pair.up.mul_((i % 3 == 0 ? 0.2 : 0.9 * static_cast<double>(i)) * kLimit / norm_of_change(pair));
  }
  const at::Tensor before = adapter.flat_parameters().clone();
  limit_weight_norms(adapter, kLimit);
  int limited = 0;
  for (size_t i = 0; i < adapter.modules().size(); ++i) {
    const LoraModule& module = adapter.modules()[i];
    const at::Tensor old = before.narrow(0, module.offset, module.num_parameters());
    const at::Tensor now = adapter.flat_parameters().narrow(0, module.offset, module.num_parameters());
    if (i % 3 == 0 || i == 1) {
      EXPECT_TRUE(at::equal(now, old)) << module.path;
      continue;
    }
    ++limited;
    EXPECT_NEAR(norm_of_change(*module.layer->lora), kLimit, 1e-6) << module.path;
    // Both matrices by one factor.
    const double factor = std::sqrt(1 / (0.9 * static_cast<double>(i)));
    EXPECT_LT((now - old * factor).norm().item<double>(), 1e-5 * now.norm().item<double>()) << module.path;
  }
  EXPECT_GT(limited, 4);
}

}  // namespace
}  // namespace lorashard
