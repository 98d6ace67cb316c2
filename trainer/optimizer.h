// What every optimizer is to the trainer: a step over the adapter's one flat tensor, and a state by name for
// checkpoints. trainer/make_optimizer.h makes the one that a recipe names.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "trainer/named_state.h"
#include "trainer/parameter_groups.h"

namespace lorashard {

/// A step is a pure function of state and gradient: the same bits on every rank. Not thread-safe.
class Optimizer {
 public:
  virtual ~Optimizer() = default;
  Optimizer(const Optimizer&) = delete;
  Optimizer& operator=(const Optimizer&) = delete;

  /// One update of the parameters in place. `gradient`: fp32 [P], may be overwritten. `learning_rates`: one of each
  /// group.
  void step(at::Tensor& gradient, const std::vector<double>& learning_rates);
  /// step() where `found_inf` (fp32 [], on the parameters' device) is 0, and nothing where it is 1. settle() must follow.
  void step_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates);
  /// What found_inf was: a skipped update isn't counted.
  void settle(bool skipped) { updates_ -= skipped ? 1 : 0; }

  /// What a checkpoint keeps besides parameters and `updates`. The tensors are the optimizer's own, not copies.
  NamedState state() const;
  /// Goes on from `saved`, a state() of the same optimizer after `updates` updates. Throws Error(bad_data) where names,
  /// types or shapes are others.
  void load(const NamedState& saved, int64_t updates);

  int64_t updates() const { return updates_; }  ///< applied
  const std::vector<ParameterGroup>& groups() const { return groups_; }

 protected:
  /// `parameters`: fp32 [P], contiguous; each element is in one group.
  Optimizer(at::Tensor parameters, std::vector<ParameterGroup> groups);

  /// One update, after updates_ was counted up: it is the number of this one, from 1. Runs without autograd.
  virtual void update(at::Tensor& gradient, const std::vector<double>& learning_rates) = 0;
  /// The same where `found_inf` is 0. This one asks the device and waits for its answer; an optimizer whose kernel can ask by itself
  /// overrides it.
  virtual void update_unless(const at::Tensor& found_inf, at::Tensor& gradient, const std::vector<double>& learning_rates);

  /// In the constructor of an optimizer: makes a tensor part of state(). Returns it.
  at::Tensor keep(const std::string& name, at::Tensor tensor);
  /// The same of a number that the optimizer owns.
  void keep(const std::string& name, double* number) { scalars_[name] = number; }
  void keep(const std::string& name, int64_t* number) { scalars_[name] = number; }

  const at::Tensor parameters_;
  const std::vector<ParameterGroup> groups_;
  int64_t updates_ = 0;

 private:
  void check(const at::Tensor& gradient, const std::vector<double>& learning_rates) const;

  StateDict tensors_;
  std::map<std::string, std::variant<int64_t*, double*>> scalars_;
};

}  // namespace lorashard
