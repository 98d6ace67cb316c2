// How a fused operation of models/ becomes one node of the autograd graph. torch::autograd::Function would do, but its
// bookkeeping costs more than the small products inside; a Node of our own is what torch's generated code uses.
#pragma once
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <memory>
#include <utility>

namespace lorashard {

/// Inside a fused operation nothing is recorded: its own Node is the record.
using BelowAutograd = at::AutoDispatchBelowADInplaceOrView;

/// Makes `output` the result of a new N whose inputs are `inputs`, filled by `fill(N&)`, if any input wants a gradient.
template <class N, class Fill, class... Inputs>
void record(const at::Tensor& output, Fill&& fill, const Inputs&... inputs) {
  if (!torch::autograd::compute_requires_grad(inputs...)) return;
  std::shared_ptr<N> node(new N(), torch::autograd::deleteNode);
  node->set_next_edges(torch::autograd::collect_next_edges(inputs...));
  fill(*node);
  torch::autograd::set_history(output, node);
}

}  // namespace lorashard
