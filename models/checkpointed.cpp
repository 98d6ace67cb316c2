#include "models/checkpointed.h"

#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "models/lora_dropout.h"

namespace lorashard {
namespace {

using Inputs = std::vector<at::Tensor>;
using torch::autograd::variable_list;

/// Tensors of their own with the same values, which gradients end at.
Inputs leaves_of(const Inputs& inputs, const std::vector<bool>& wants_grad) {
  Inputs leaves;
  for (size_t i = 0; i < inputs.size(); ++i) {
    leaves.push_back(inputs[i].defined() ? inputs[i].detach() : at::Tensor());
    if (wants_grad[i]) leaves.back().set_requires_grad(true);
  }
  return leaves;
}

at::Tensor recorded(const std::function<at::Tensor(const Inputs&)>& f, const Inputs& leaves) {
  const c10::AutoGradMode enable(true);
  return f(leaves);
}

struct CheckpointBackward : torch::autograd::Node {
  std::function<at::Tensor(const Inputs&)> f;
  Inputs inputs;  // detached
  std::vector<bool> wants_grad;
  std::optional<std::vector<DropoutRow>> dropout_rows;

  variable_list apply(variable_list&& grads) override {
    variable_list results(inputs.size());
    if (!grads[0].defined()) return results;
    const Inputs leaves = leaves_of(inputs, wants_grad);
    // A GPU's backward runs on a thread of its own, which knows of no rows.
    const auto rows = dropout_rows ? std::make_unique<LoraDropoutRows>(*dropout_rows) : nullptr;
    const at::Tensor output = recorded(f, leaves);
    if (!output.requires_grad()) return results;  // nothing inside wants a gradient, nor does an input
    torch::autograd::backward({output}, {grads[0]});
    for (size_t i = 0; i < leaves.size(); ++i) {
      if (wants_grad[i]) results[i] = leaves[i].grad();
    }
    return results;
  }
  void release_variables() override { inputs.clear(); }
  std::string name() const override { return "CheckpointBackward"; }
};

}  // namespace

at::Tensor checkpointed(const Inputs& inputs, std::function<at::Tensor(const Inputs&)> f) {
  if (!c10::GradMode::is_enabled()) return f(inputs);
  const std::shared_ptr<CheckpointBackward> node(new CheckpointBackward(), torch::autograd::deleteNode);
  // Also where no input wants a gradient: a LoRA pair inside f does.
  for (const at::Tensor& input : inputs) {
    const bool wants = input.defined() && input.requires_grad();
    node->wants_grad.push_back(wants);
    node->inputs.push_back(input.defined() ? input.detach() : at::Tensor());
    node->add_next_edge(wants ? torch::autograd::impl::gradient_edge(input) : torch::autograd::Edge());
  }
  if (const auto* rows = LoraDropoutRows::current()) node->dropout_rows = *rows;
  // Recorded here too, and the record dropped: some kernels are chosen by what wants a gradient, and both times it must be the same.
  const at::Tensor output = recorded(f, leaves_of(node->inputs, node->wants_grad)).detach();
  node->f = std::move(f);
  torch::autograd::set_history(output, node);
  return output;
}

}  // namespace lorashard
