#include "models/layers.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <tuple>

#include "models/attention.h"
#include "models/frozen_conv.h"
#include "models/small_attention.h"

namespace lorashard {
namespace {

double relative_error(const at::Tensor& found, const at::Tensor& expected) {
  const at::Tensor reference = expected.to(at::kDouble);
  return ((found.to(at::kDouble) - reference).norm() / reference.norm()).item<double>();
}

LoraPair pair_for(const Linear& layer, int64_t rank, double scale) {
  return {at::randn({rank, layer.in_features()}).requires_grad_(),
          at::randn({layer.out_features(), rank}).requires_grad_(), scale};
}

/// A Linear with random weights and LoRA, and the same as separate operations of autograd.
struct LoraLinearCase {
  Linear layer;
  at::Tensor x;
  LoraLinearCase(int64_t in, int64_t out, bool with_bias, double scale) : layer(in, out, with_bias) {
    at::manual_seed(3);
    layer.weight.normal_();
    if (with_bias) layer.bias.normal_();
    layer.lora = pair_for(layer, 4, scale);
    x = at::randn({3, 7, in}).requires_grad_();
  }
  at::Tensor apart(const at::Tensor& input, const at::Tensor& down, const at::Tensor& up) const {
    return at::linear(input, layer.weight, layer.bias) + at::linear(at::linear(input, down), up) * layer.lora->scale;
  }
};

TEST(Linear, WithLoraEqualsItsFourOperationsApart) {
  for (const bool with_bias : {false, true})
    for (const double scale : {1.0, 0.5}) {
      LoraLinearCase test(12, 20, with_bias, scale);
      const at::Tensor g = at::randn({3, 7, 20});
      const at::Tensor found = test.layer.forward(test.x);
      found.backward(g);
      const at::Tensor x = test.x.detach().requires_grad_(), down = test.layer.lora->down.detach().requires_grad_(),
                       up = test.layer.lora->up.detach().requires_grad_();
      const at::Tensor expected = test.apart(x, down, up);
      expected.backward(g);
      EXPECT_LE(relative_error(found.detach(), expected.detach()), 5e-7);
      EXPECT_LE(relative_error(test.x.grad(), x.grad()), 5e-7);
      EXPECT_LE(relative_error(test.layer.lora->down.grad(), down.grad()), 5e-7);
      EXPECT_LE(relative_error(test.layer.lora->up.grad(), up.grad()), 5e-7);
    }
}

TEST(Linear, GradientsAreAddedToWhatIsThere) {
  LoraLinearCase test(12, 20, true, 2);
  const at::Tensor g = at::randn({3, 7, 20});
  test.layer.forward(test.x).backward(g);
  const at::Tensor once = test.layer.lora->down.grad().clone(), view = test.layer.lora->down.grad();
  test.layer.forward(test.x).backward(g);
  EXPECT_TRUE(view.is_same(test.layer.lora->down.grad()));
  EXPECT_LE(relative_error(view, 2 * once), 5e-7);
}

TEST(Linear, LoraTrainsWhereTheInputWantsNoGradient) {
  LoraLinearCase test(12, 20, true, 2);
  test.layer.forward(test.x.detach()).sum().backward();
  EXPECT_FALSE(test.x.grad().defined());
  EXPECT_GT(test.layer.lora->up.grad().norm().item<double>(), 0.0);
}

TEST(Linear, RecordsNothingWithoutGradMode) {
  LoraLinearCase test(12, 20, true, 2);
  const at::NoGradGuard no_grad;
  EXPECT_FALSE(test.layer.forward(test.x).requires_grad());
}

TEST(Linear, Bf16ProductsGiveFp32Gradients) {
  LoraLinearCase test(64, 48, true, 1);
  const at::Tensor g = at::randn({3, 7, 48});
  test.apart(test.x, test.layer.lora->down, test.layer.lora->up).backward(g);
  const at::Tensor expected_down = test.layer.lora->down.grad().clone(), expected_x = test.x.grad().clone();
  test.layer.lora->down.grad().zero_();
  test.layer.lora->up.grad().zero_();
  test.layer.weight.set_data(test.layer.weight.to(at::kBFloat16));
  test.layer.bias.set_data(test.layer.bias.to(at::kBFloat16));
  const at::Tensor x = test.x.detach().to(at::kBFloat16).requires_grad_();
  const at::Tensor y = test.layer.forward(x);
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  y.backward(g.to(at::kBFloat16));
  EXPECT_EQ(test.layer.lora->down.grad().scalar_type(), at::kFloat);
  EXPECT_LE(relative_error(test.layer.lora->down.grad(), expected_down), 1e-2);
  EXPECT_LE(relative_error(x.grad(), expected_x), 1e-2);
}

// channels in and out, side, kernel, stride, padding: the plain, the one-pixel, the pointwise and the strided way, and
// one too large for patches.
using ConvCase = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>;
class FrozenConv : public testing::TestWithParam<ConvCase> {};

TEST_P(FrozenConv, EqualsConv2dWithItsGradient) {
  const auto [in, out, side, kernel, stride, padding] = GetParam();
  at::manual_seed(1);
  const at::Tensor weight = at::randn({out, in, kernel, kernel}), bias = at::randn({out});
  const at::Tensor original = weight.clone();
  const at::Tensor x = at::randn({3, in, side, side}).requires_grad_(), x2 = x.detach().requires_grad_();
  const at::Tensor expected = at::conv2d(x2, original, bias, {stride, stride}, {padding, padding});
  const at::Tensor g = at::randn_like(expected, at::MemoryFormat::Contiguous);
  expected.backward(g);
  for (int i = 0; i < 2; ++i) {  // the second time with the weight as the first left it
    const at::Tensor found = frozen_conv2d(x, weight, bias, stride, padding);
    found.backward(g);
    ASSERT_EQ(found.sizes(), expected.sizes());
    EXPECT_LE(relative_error(found.detach(), expected.detach()), 1e-6);
    EXPECT_LE(relative_error(x.grad(), x2.grad()), 1e-6);
    x.mutable_grad().reset();
  }
  EXPECT_TRUE(at::equal(weight, original));
  EXPECT_FALSE(weight.grad().defined());
}

INSTANTIATE_TEST_SUITE_P(Shapes, FrozenConv,
                         testing::Values(ConvCase{5, 7, 6, 3, 1, 1}, ConvCase{5, 7, 1, 3, 1, 1},
                                         ConvCase{5, 7, 6, 1, 1, 0}, ConvCase{8, 8, 6, 3, 2, 1},
                                         ConvCase{8, 8, 7, 3, 2, 0}, ConvCase{1, 4, 2, 3, 1, 1},
                                         ConvCase{4, 4, 40, 3, 1, 1}, ConvCase{4, 6, 40, 1, 1, 0}));

// queries, keys, heads, head dimension
using AttentionCase = std::tuple<int64_t, int64_t, int64_t, int64_t>;
class SmallAttention : public testing::TestWithParam<AttentionCase> {};

TEST_P(SmallAttention, EqualsSoftmaxWrittenOutWithItsGradients) {
  const auto [queries, keys, heads, head_dim] = GetParam();
  at::manual_seed(2);
  const auto make = [&, heads = heads, head_dim = head_dim](int64_t tokens) {
    return (2 * at::randn({2, tokens, heads * head_dim})).requires_grad_();
  };
  const at::Tensor q = make(queries), k = make(keys), v = make(keys), g = at::randn_like(q);
  ASSERT_TRUE(is_small_attention(q, k, heads));
  const at::Tensor found = small_attention(q, k, v, heads);
  found.backward(g);

  std::vector<at::Tensor> inputs;
  for (const at::Tensor& x : {q, k, v}) inputs.push_back(x.detach().to(at::kDouble).requires_grad_());
  const auto split = [heads = heads](const at::Tensor& x) { return x.unflatten(-1, {heads, -1}).transpose(1, 2); };
  const at::Tensor scores =
      at::matmul(split(inputs[0]), split(inputs[1]).transpose(2, 3)) / std::sqrt(static_cast<double>(head_dim));
  const at::Tensor expected = at::matmul(at::softmax(scores, -1), split(inputs[2])).transpose(1, 2).flatten(2);
  expected.backward(g.to(at::kDouble));

  EXPECT_LE(relative_error(found.detach(), expected.detach()), 1e-6);
  EXPECT_LE((q.grad() - inputs[0].grad()).norm().item<double>(),
            2e-6 * (1e-3 + inputs[0].grad().norm().item<double>()));
  EXPECT_LE((k.grad() - inputs[1].grad()).norm().item<double>(),
            2e-6 * (1e-3 + inputs[1].grad().norm().item<double>()));
  EXPECT_LE(relative_error(v.grad(), inputs[2].grad()), 1e-6);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SmallAttention,
                         testing::Values(AttentionCase{64, 77, 8, 4}, AttentionCase{16, 16, 4, 8},
                                         AttentionCase{1, 1, 2, 3}, AttentionCase{5, 200, 3, 40},
                                         AttentionCase{33, 15, 2, 64}));

TEST(SmallAttention, GivesTheSameBitsOnAnyNumberOfThreads) {
  const int threads = at::get_num_threads();
  const at::Tensor q = at::randn({4, 256, 64}), k = at::randn({4, 77, 64});
  at::set_num_threads(1);
  const at::Tensor one = small_attention(q, k, k, 8);
  at::set_num_threads(3);
  const at::Tensor three = small_attention(q, k, k, 8);
  at::set_num_threads(threads);
  EXPECT_TRUE(at::equal(one, three));
}

TEST(SmallAttention, SurvivesScoresFarApart) {
  const at::Tensor q = 100 * at::randn({1, 8, 16}), k = 100 * at::randn({1, 8, 16}), v = at::randn({1, 8, 16});
  const at::Tensor out = small_attention(q, k, v, 1);
  EXPECT_TRUE(at::isfinite(out).all().item<bool>());
  const at::Tensor largest = at::matmul(q, k.transpose(1, 2)).argmax(-1).flatten();
  EXPECT_LE(relative_error(out[0], v[0].index_select(0, largest)), 1e-6);
}

TEST(MultiHeadAttention, ManyTokensTakeTheFlashKernelWithTheSameResult) {
  const at::Tensor q = at::randn({1, 300, 32}), k = at::randn({1, 300, 32}), v = at::randn({1, 300, 32});
  ASSERT_FALSE(is_small_attention(q, k, 4));
  const at::Tensor found = multi_head_attention(q, k, v, 4);
  const auto split = [](const at::Tensor& x) { return x.to(at::kDouble).unflatten(-1, {4, -1}).transpose(1, 2); };
  const at::Tensor p = at::softmax(at::matmul(split(q), split(k).transpose(2, 3)) / std::sqrt(8.0), -1);
  EXPECT_LE(relative_error(found, at::matmul(p, split(v)).transpose(1, 2).flatten(2)), 1e-6);
}

}  // namespace
}  // namespace lorashard
