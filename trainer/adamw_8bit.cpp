#include "trainer/adamw_8bit.h"

#include <ATen/ops/bucketize.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dist/error.h"

namespace lorashard {
namespace {

/// Values half way between neighbours of `map`: a number belongs to the nearest of the 256, the lower one of two
/// equally near.
at::Tensor middles_of(const at::Tensor& map) { return map.narrow(0, 0, 255).add(map.narrow(0, 1, 255)).mul_(0.5); }

/// U8 [blocks, 256] and the blocks' largest magnitudes to fp32 [blocks, 256].
at::Tensor dequantized(const at::Tensor& bytes, const at::Tensor& absmax, const at::Tensor& map) {
  return map.index_select(0, bytes.reshape(-1).to(at::kInt)).view(bytes.sizes()).mul_(absmax.unsqueeze(1));
}

void quantize(const at::Tensor& values, const at::Tensor& middles, at::Tensor bytes, at::Tensor absmax) {
  absmax.copy_(values.abs().amax(1));
  // A block of zeros has no scale; any will do.
  const at::Tensor scaled = values.div(absmax.clamp_min(std::numeric_limits<float>::min()).unsqueeze(1));
  bytes.copy_(at::bucketize(scaled, middles, /*out_int32=*/true));
}

/// The tensors of `flat` that `pieces` name, each filled up to whole blocks: fp32 [blocks, 256].
template <class Pieces>
at::Tensor in_blocks(const at::Tensor& flat, const Pieces& pieces, int64_t num_blocks, int64_t first_block) {
  const at::Tensor blocks = at::zeros({num_blocks * AdamW8bit::kBlock}, flat.options());
  for (const auto& piece : pieces) {
    const int64_t count = piece.tensor.numel();
    blocks.narrow(0, (piece.begin - first_block) * AdamW8bit::kBlock, count)
        .copy_(flat.narrow(0, piece.tensor.offset, count));
  }
  return blocks.view({num_blocks, AdamW8bit::kBlock});
}

}  // namespace

at::Tensor dynamic_map(bool is_signed) {
  // Seven decades; in decade i the fraction has i bits (one more without a sign), its values being the middles of equal
  // parts of [0.1, 1].
  std::vector<float> values = {0.0F, 1.0F};
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << (is_signed ? i : i + 1);
    const double decade = std::pow(10.0, i - 6);
    const at::Tensor bounds = at::linspace(0.1, 1.0, parts + 1, at::TensorOptions(at::kFloat));
    const at::Tensor middles = bounds.narrow(0, 0, parts).add(bounds.narrow(0, 1, parts)).div_(2.0).mul_(decade);
    for (int j = 0; j < parts; ++j) {
      const float value = middles.const_data_ptr<float>()[j];
      values.push_back(value);
      if (is_signed) values.push_back(-value);
    }
  }
  LORASHARD_CHECK(values.size() == 256, "dynamic map of {} values", values.size());
  std::sort(values.begin(), values.end());
  at::Tensor map = at::empty({256}, at::TensorOptions(at::kFloat));
  std::copy(values.begin(), values.end(), map.mutable_data_ptr<float>());
  return map;
}

AdamW8bit::AdamW8bit(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdamWOptions& options)
    : Optimizer(std::move(parameters), std::move(groups)), options_(options) {
  int64_t small = 0, blocks = 0;
  for (const ParameterGroup& group : groups_) {
    GroupPieces& mine = pieces_.emplace_back();
    mine.first_block = blocks;
    for (const FlatTensor& tensor : group.tensors) {
      if (tensor.numel() < kMinQuantized) {
        mine.small.push_back({tensor, small});
        small += tensor.numel();
      } else {
        mine.quantized.push_back({tensor, blocks});
        blocks += (tensor.numel() + kBlock - 1) / kBlock;
      }
    }
    mine.num_blocks = blocks - mine.first_block;
  }
  const auto floats = parameters_.options();
  map1_ = dynamic_map(true).to(parameters_.device());
  map2_ = dynamic_map(false).to(parameters_.device());
  middles1_ = middles_of(map1_);
  middles2_ = middles_of(map2_);
  exp_avg_ = keep("exp_avg", at::zeros({small}, floats));
  exp_avg_sq_ = keep("exp_avg_sq", at::zeros({small}, floats));
  state1_ = keep("state1", at::zeros({blocks, kBlock}, floats.dtype(at::kByte)));
  state2_ = keep("state2", at::zeros({blocks, kBlock}, floats.dtype(at::kByte)));
  absmax1_ = keep("absmax1", at::zeros({blocks}, floats));
  absmax2_ = keep("absmax2", at::zeros({blocks}, floats));
}

void AdamW8bit::update_small(const Piece& piece, const at::Tensor& gradient, double lr, double weight_decay) {
  const int64_t count = piece.tensor.numel();
  const at::Tensor g = gradient.narrow(0, piece.tensor.offset, count),
                   p = parameters_.narrow(0, piece.tensor.offset, count);
  at::Tensor m = exp_avg_.narrow(0, piece.begin, count), v = exp_avg_sq_.narrow(0, piece.begin, count);
  m.mul_(options_.beta1).add_(g, 1.0 - options_.beta1);
  v.mul_(options_.beta2).addcmul_(g, g, 1.0 - options_.beta2);
  const double correction1 = 1.0 - std::pow(options_.beta1, double(updates_));
  const double correction2 = std::sqrt(1.0 - std::pow(options_.beta2, double(updates_)));
  if (weight_decay > 0) p.mul_(1.0 - lr * weight_decay);
  p.add_(m.div(v.sqrt().add_(options_.epsilon * correction2)), -lr * correction2 / correction1);
}

void AdamW8bit::update_quantized(const GroupPieces& pieces, const at::Tensor& gradient, double lr,
                                 double weight_decay) {
  const auto mine = [&](const at::Tensor& state) { return state.narrow(0, pieces.first_block, pieces.num_blocks); };
  const at::Tensor g = in_blocks(gradient, pieces.quantized, pieces.num_blocks, pieces.first_block);
  const at::Tensor m = dequantized(mine(state1_), mine(absmax1_), map1_),
                   v = dequantized(mine(state2_), mine(absmax2_), map2_);
  m.mul_(options_.beta1).add_(g, 1.0 - options_.beta1);
  v.mul_(options_.beta2).addcmul_(g, g, 1.0 - options_.beta2);
  const double correction1 = 1.0 - std::pow(options_.beta1, double(updates_));
  const double correction2 = std::sqrt(1.0 - std::pow(options_.beta2, double(updates_)));
  const at::Tensor root = v.sqrt().div_(correction2).add_(options_.epsilon), flat_m = m.view(-1),
                   flat_root = root.view(-1);
  for (const Piece& piece : pieces.quantized) {
    const int64_t count = piece.tensor.numel(), begin = (piece.begin - pieces.first_block) * kBlock;
    const at::Tensor p = parameters_.narrow(0, piece.tensor.offset, count);
    if (weight_decay > 0) p.mul_(1.0 - lr * weight_decay);
    p.addcdiv_(flat_m.narrow(0, begin, count), flat_root.narrow(0, begin, count), -lr / correction1);
  }
  quantize(m, middles1_, mine(state1_), mine(absmax1_));
  quantize(v, middles2_, mine(state2_), mine(absmax2_));
}

void AdamW8bit::update(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const Piece& piece : pieces_[i].small)
      update_small(piece, gradient, learning_rates[i], groups_[i].weight_decay);
    if (pieces_[i].num_blocks > 0) update_quantized(pieces_[i], gradient, learning_rates[i], groups_[i].weight_decay);
  }
}

}  // namespace lorashard
