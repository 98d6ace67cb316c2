#include "models/layers.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "models/attention.h"
#include "models/frozen_conv.h"
#include "models/fused_norm.h"
#include "models/geglu.h"
#include "models/simd.h"
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

// Widths in whole vectors and a .grad to add to: the way of low_rank.h, also with a rest of rows and without residual.
TEST(Linear, InOnePassOverTheRowsEqualsItsOperationsApart) {
  for (const int64_t rank : {4, 8})
    for (const bool with_residual : {false, true}) {
      LoraLinearCase test(32, 48, true, 0.5);
      test.layer.lora = pair_for(test.layer, rank, 0.5);
      const LoraPair& lora = *test.layer.lora;
      for (const at::Tensor* parameter : {&lora.down, &lora.up})
        parameter->mutable_grad() = at::ones_like(parameter->detach());
      const at::Tensor g = at::randn({3, 7, 48}), down = lora.down.detach().requires_grad_(),
                       up = lora.up.detach().requires_grad_(), x = test.x.detach().requires_grad_();
      const at::Tensor residual = at::randn({3, 7, 48}).requires_grad_(),
                       residual2 = residual.detach().requires_grad_();
      const at::Tensor found = test.layer.forward(test.x, with_residual ? residual : at::Tensor());
      found.backward(g);
      at::Tensor expected = test.apart(x, down, up);
      if (with_residual) expected = expected + residual2;
      expected.backward(g);
      EXPECT_LE(relative_error(found.detach(), expected.detach()), 5e-7);
      EXPECT_LE(relative_error(test.x.grad(), x.grad()), 5e-7);
      EXPECT_LE(relative_error(lora.down.grad(), down.grad() + 1), 5e-7);
      EXPECT_LE(relative_error(lora.up.grad(), up.grad() + 1), 5e-7);
      if (with_residual) {
        EXPECT_TRUE(at::equal(residual.grad(), residual2.grad()));
      }
    }
}

TEST(Linear, FrozenEqualsLinearWithItsGradient) {
  for (const int64_t rows : {3, 20, 200}) {
    Linear layer(24, 40);
    layer.weight.normal_();
    layer.bias.normal_();
    const at::Tensor x = at::randn({rows, 24}).requires_grad_(), x2 = x.detach().requires_grad_();
    const at::Tensor residual = at::randn({rows, 40}), g = at::randn({rows, 40});
    const at::Tensor found = layer.forward(x, residual), expected = at::linear(x2, layer.weight, layer.bias) + residual;
    found.backward(g);
    expected.backward(g);
    EXPECT_LE(relative_error(found.detach(), expected.detach()), 5e-7);
    EXPECT_LE(relative_error(x.grad(), x2.grad()), 5e-7);
  }
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

/// The gradient of an image needs the weight alone: what was convolved isn't kept for it. Both the strided and the plain way of the library.
TEST(FrozenConvMemory, TheInputIsNotKeptForBackward) {
  for (const int64_t stride : {1, 2}) {
    const at::Tensor weight = at::randn({4, 4, 3, 3}), bias = at::randn({4});
    const at::Tensor leaf = at::randn({1, 4, 80, 80}).requires_grad_();
    at::Tensor x = leaf * 2;
    const c10::weak_intrusive_ptr<c10::TensorImpl> input(x.getIntrusivePtr());
    const at::Tensor y = frozen_conv2d(x, weight, bias, stride, 1);
    x.reset();
    EXPECT_TRUE(input.expired());
    y.sum().backward();
    const at::Tensor again = leaf.detach().requires_grad_();
    at::conv2d(again * 2, weight, bias, {stride, stride}, {1, 1}).sum().backward();
    EXPECT_TRUE(at::equal(leaf.grad(), again.grad()));
  }
}

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

// channels, groups, side; the first that isn't in whole vectors takes ATen's kernels.
using NormCase = std::tuple<int64_t, int64_t, int64_t>;
class FusedGroupNorm : public testing::TestWithParam<NormCase> {};

TEST_P(FusedGroupNorm, EqualsItsOperationsApartWithTheirGradient) {
  const auto [channels, groups, side] = GetParam();
  at::manual_seed(5);
  const at::Tensor weight = at::randn({channels}), bias = at::randn({channels}), shift = 3 * at::randn({2, channels});
  for (const bool silu : {false, true})
    for (const bool with_shift : {false, true}) {
      const at::Tensor x =
          (5 + 2 * at::randn({2, channels, side, side})).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
      const GroupNormWork work{.weight = weight, .bias = bias, .num_groups = groups, .eps = 1e-5, .silu = silu};
      const at::Tensor found = fused_group_norm(x, with_shift ? shift : at::Tensor(), work);
      const at::Tensor x2 = x.detach().to(at::kDouble).requires_grad_();
      const at::Tensor shifted = with_shift ? x2 + shift.to(at::kDouble).unsqueeze(-1).unsqueeze(-1) : x2;
      const at::Tensor normed = at::group_norm(shifted, groups, weight.to(at::kDouble), bias.to(at::kDouble), 1e-5);
      const at::Tensor expected = silu ? at::silu(normed) : normed;
      const at::Tensor g = at::randn_like(found.detach());
      found.backward(g);
      expected.backward(g.to(at::kDouble));
      EXPECT_TRUE(found.is_contiguous(at::MemoryFormat::ChannelsLast));
      EXPECT_LE(relative_error(found.detach(), expected.detach()), 1e-6);
      EXPECT_LE(relative_error(x.grad(), x2.grad()), 5e-6);
    }
}

INSTANTIATE_TEST_SUITE_P(Shapes, FusedGroupNorm,
                         testing::Values(NormCase{12, 3, 5}, NormCase{16, 4, 5}, NormCase{96, 8, 4},
                                         NormCase{128, 8, 1}, NormCase{64, 8, 9}, NormCase{320, 32, 64}));

TEST(Geglu, EqualsItsOperationsApartWithTheirGradient) {
  for (const int64_t width : {10, 48}) {
    const at::Tensor x = (3 * at::randn({2, 5, 2 * width})).requires_grad_();
    const at::Tensor x2 = x.detach().to(at::kDouble).requires_grad_(), g = at::randn({2, 5, width});
    const at::Tensor found = geglu(x), expected = x2.narrow(2, 0, width) * at::gelu(x2.narrow(2, width, width));
    found.backward(g);
    expected.backward(g.to(at::kDouble));
    EXPECT_LE(relative_error(found.detach(), expected.detach()), 5e-7);
    EXPECT_LE(relative_error(x.grad(), x2.grad()), 5e-7);
  }
}

LORASHARD_SIMD void exp_and_erf(const float* x, float* exps, float* erfs, int64_t size) {
  for (int64_t i = 0; i < size; i += simd::kWidth) {
    simd::Floats a, b;
    simd::load(a, x + i);
    b = a;
    simd::exp(a);
    simd::erf(b);
    simd::store(exps + i, a);
    simd::store(erfs + i, b);
  }
}

TEST(Simd, ExpAndErfAreRightToAFewUlp) {
  std::vector<float> x(1 << 16), exps(x.size()), erfs(x.size());
  for (size_t i = 0; i < x.size(); ++i) x[i] = -87.0f + 175.0f * static_cast<float>(i) / static_cast<float>(x.size());
  exp_and_erf(x.data(), exps.data(), erfs.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = std::exp(static_cast<double>(x[i]));
    ASSERT_NEAR(exps[i], expected, 2.5e-7 * expected) << x[i];
    ASSERT_NEAR(erfs[i], std::erf(static_cast<double>(x[i])), 5e-7) << x[i];
  }
}

}  // namespace
}  // namespace lorashard
