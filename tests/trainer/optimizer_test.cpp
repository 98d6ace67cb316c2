#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "dist/error.h"

namespace lorashard {
namespace {

at::Tensor values(int64_t count, double scale) {
  return at::sin(at::arange(count, at::kDouble).mul_(0.7)).mul_(scale).to(at::kFloat);
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.nbytes() == b.nbytes() && std::memcmp(a.const_data_ptr(), b.const_data_ptr(), a.nbytes()) == 0;
}

std::vector<ParameterGroup> one_group(int64_t count, double weight_decay = 1e-2) {
  return {{.name = "unet", .learning_rate = 1e-3, .weight_decay = weight_decay, .tensors = {{0, {count}}}}};
}

TEST(AdamW, FollowsTheFormulaOfThePaperInDouble) {
  const AdamWOptions options{.beta1 = 0.9, .beta2 = 0.99, .epsilon = 1e-8};
  const double lr = 1e-2, weight_decay = 0.1;
  at::Tensor parameters = values(100, 1.0);
  at::Tensor p = parameters.to(at::kDouble), m = at::zeros_like(p), v = at::zeros_like(p);
  AdamW optimizer(parameters, one_group(100, weight_decay), options);
  for (int k = 1; k <= 5; ++k) {
    at::Tensor gradient = values(100, 0.1 * k);
    optimizer.step(gradient, {lr});
    const at::Tensor g = gradient.to(at::kDouble);
    m = options.beta1 * m + (1 - options.beta1) * g;
    v = options.beta2 * v + (1 - options.beta2) * g * g;
    const at::Tensor m_hat = m / (1 - std::pow(options.beta1, k)), v_hat = v / (1 - std::pow(options.beta2, k));
    p = p * (1 - lr * weight_decay) - lr * m_hat / (v_hat.sqrt() + options.epsilon);
  }
  EXPECT_EQ(optimizer.updates(), 5);
  EXPECT_LT((parameters.to(at::kDouble) - p).abs().max().item<double>(), 5e-7);
}

TEST(AdamW, ContinuesBitForBitFromItsStateAndUpdateCount) {
  const auto steps = [](Optimizer& optimizer, int from, int to) {
    for (int k = from; k < to; ++k) {
      at::Tensor gradient = values(5000, 0.1 + k);
      optimizer.step(gradient, {1e-3});
    }
  };
  at::Tensor whole = values(5000, 1.0), parts = values(5000, 1.0);
  AdamW one(whole, one_group(5000), {}), before(parts, one_group(5000), {}), after(parts, one_group(5000), {});
  steps(one, 0, 6);
  steps(before, 0, 3);
  after.load(before.state(), before.updates());
  steps(after, 3, 6);
  EXPECT_TRUE(same_bits(whole, parts));
  EXPECT_TRUE(same_bits(one.state().tensors.at("exp_avg_sq"), after.state().tensors.at("exp_avg_sq")));
}

TEST(AdamW, RefusesAGradientOfAnotherLengthAndAStateOfAnotherShape) {
  AdamW optimizer(values(10, 1.0), one_group(10), {}), larger(values(11, 1.0), one_group(11), {});
  at::Tensor gradient = values(9, 1.0);
  EXPECT_THROW(optimizer.step(gradient, {1e-3}), Error);
  EXPECT_THROW(optimizer.load(larger.state(), 1), Error);
  NamedState more = optimizer.state();
  more.scalars["d"] = 1.0;
  EXPECT_THROW(optimizer.load(more, 1), Error);
}

TEST(AdamW, EachGroupHasItsOwnRateAndDecay) {
  const std::vector<ParameterGroup> groups = {
      {.name = "a", .learning_rate = 0, .weight_decay = 0.1, .tensors = {{0, {2, 2}}, {6, {3}}}},
      {.name = "b", .learning_rate = 0, .weight_decay = 0, .tensors = {{4, {2}}}}};
  at::Tensor parameters = at::ones({9});
  AdamW optimizer(parameters, groups, {});
  at::Tensor gradient = at::zeros({9});
  optimizer.step(gradient, {1.0, 1.0});  // no gradient: only the decay is left
  const at::Tensor expected = at::tensor({.9f, .9f, .9f, .9f, 1.f, 1.f, .9f, .9f, .9f});
  EXPECT_TRUE(at::allclose(parameters, expected)) << parameters;
}

}  // namespace
}  // namespace lorashard
