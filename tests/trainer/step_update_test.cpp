// The update by tensor operations, as a GPU makes it, held on CPU tensors against the host's.
#include "trainer/step_update.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "trainer/adamw.h"
#include "trainer/clip_gradient.h"

namespace lorashard {
namespace {

constexpr int64_t kParameters = 20000;

at::Tensor numbers(double factor) {
  return (at::sin(at::arange(kParameters, at::kDouble) * factor) * 0.01).to(at::kFloat);
}

std::vector<ParameterGroup> one_group() {
  return {{.name = "unet", .learning_rate = 1e-3, .weight_decay = 1e-2, .tensors = {{0, {kParameters}}}}};
}

TEST(StepUpdate, ClippingWithoutWaitingIsClipping) {
  for (const double max_norm : {0.1, 0.9, 100.0}) {
    at::Tensor host = numbers(1.7), device = host.clone();
    const double expected = clip_gradient(host, max_norm);
    const at::Tensor norm = clip_gradient_without_waiting(device, max_norm);
    EXPECT_EQ(norm.scalar_type(), at::kDouble);
    EXPECT_NEAR(norm.item<double>(), expected, 1e-12 * expected);
    // The sums of squares differ in their order, so the scale may differ in fp32's last bit.
    EXPECT_LE(((device - host).abs() / host.abs().clamp_min(1e-30)).max().item<double>(), std::ldexp(1.0, -23));
    EXPECT_EQ(at::equal(device, numbers(1.7)), max_norm > expected);
  }
}

TEST(StepUpdate, AnUpdateThatIsNotSkippedHasTheBitsOfAStep) {
  at::Tensor a = numbers(0.3), b = a.clone();
  AdamW host(a, one_group(), {}), device(b, one_group(), {});
  for (int step = 0; step < 3; ++step) {
    at::Tensor gradient = numbers(1.1 + step), same = gradient.clone();
    host.step(gradient, {1e-3});
    device.step_unless(at::zeros({}, at::kFloat), same, {1e-3});
    device.settle(/*skipped=*/false);
    ASSERT_TRUE(at::equal(a, b)) << step;
  }
  EXPECT_EQ(device.updates(), 3);
}

TEST(StepUpdate, ASkippedOneChangesNothingAndIsNotCounted) {
  at::Tensor parameters = numbers(0.3), gradient = numbers(1.1);
  AdamW optimizer(parameters, one_group(), {});
  optimizer.step(gradient, {1e-3});
  const at::Tensor before = parameters.clone();
  const StateDict state = optimizer.state().tensors;
  const at::Tensor exp_avg = state.at("exp_avg").clone(), exp_avg_sq = state.at("exp_avg_sq").clone();
  at::Tensor bad = at::full({kParameters}, std::numeric_limits<float>::quiet_NaN());
  optimizer.step_unless(at::ones({}, at::kFloat), bad, {1e-3});
  optimizer.settle(/*skipped=*/true);
  EXPECT_TRUE(at::equal(parameters, before));
  EXPECT_TRUE(at::equal(state.at("exp_avg"), exp_avg) && at::equal(state.at("exp_avg_sq"), exp_avg_sq));
  EXPECT_EQ(optimizer.updates(), 1);
}

}  // namespace
}  // namespace lorashard
