// Parameter groups: which tensors of the adapter's flat tensor share a learning rate and a weight decay, as the
// param_groups of a torch optimizer do. Made once by the trainer from the adapter and the recipe's [optimizer].
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "models/lora.h"
#include "trainer/recipe.h"

namespace lorashard {

/// One tensor of the adapter within the flat tensor.
struct FlatTensor {
  int64_t offset = 0;
  std::vector<int64_t> sizes;

  int64_t numel() const;
  at::Tensor of(const at::Tensor& flat) const;  ///< the view, with its sizes
};

struct ParameterGroup {
  std::string name;          ///< "unet", "text_encoder.up", "unet:attn2" (its pattern in lr_pattern)
  double learning_rate = 0;  ///< before the schedule's factor
  double weight_decay = 0;
  std::vector<FlatTensor> tensors;  ///< in flat order

  /// The group's part of `flat` in as few contiguous views of one dimension as there are.
  std::vector<at::Tensor> ranges_of(const at::Tensor& flat) const;
};

/// The groups of `adapter`, in the order of their first tensors; together they hold every tensor once. Throws
/// Error(usage) naming a key that sets the rate or the decay of something that isn't trained.
std::vector<ParameterGroup> parameter_groups(const LoraAdapter& adapter, const Recipe::Optimizer& options);

}  // namespace lorashard
