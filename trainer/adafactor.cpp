#include "trainer/adafactor.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

#include "trainer/fixed_order_sum.h"

namespace lorashard {
namespace {

double root_mean_square(const at::Tensor& x) { return std::sqrt(sum_of_squares(x.contiguous()) / double(x.numel())); }

std::vector<int64_t> without(std::vector<int64_t> sizes, int64_t dimension_from_end) {
  sizes.erase(sizes.end() - dimension_from_end);
  return sizes;
}

/// Cuts one tensor after another out of a flat one.
class Cutter {
 public:
  explicit Cutter(at::Tensor flat) : flat_(std::move(flat)) {}
  at::Tensor next(const std::vector<int64_t>& sizes) {
    const FlatTensor place{offset_, sizes};
    offset_ += place.numel();
    return place.of(flat_);
  }

 private:
  at::Tensor flat_;
  int64_t offset_ = 0;
};

}  // namespace

double adafactor_relative_step(int64_t update, bool warmup_init) {
  const double step = static_cast<double>(update);
  return std::min(warmup_init ? 1e-6 * step : 1e-2, 1.0 / std::sqrt(step));
}

Adafactor::Adafactor(at::Tensor parameters, std::vector<ParameterGroup> groups, const AdafactorOptions& options)
    : Optimizer(std::move(parameters), std::move(groups)), options_(options) {
  int64_t rows = 0, columns = 0, whole = 0;
  for (const ParameterGroup& group : groups_) {
    for (const FlatTensor& tensor : group.tensors) {
      if (tensor.sizes.size() < 2) {
        whole += tensor.numel();
      } else {
        rows += tensor.numel() / tensor.sizes.back();
        columns += tensor.numel() / tensor.sizes.end()[-2];
      }
    }
  }
  Cutter row(keep("exp_avg_sq_row", at::zeros({rows}, parameters_.options())));
  Cutter column(keep("exp_avg_sq_col", at::zeros({columns}, parameters_.options())));
  Cutter flat(keep("exp_avg_sq", at::zeros({whole}, parameters_.options())));
  for (const ParameterGroup& group : groups_) {
    for (const FlatTensor& tensor : group.tensors) {
      Moment& moment = moments_.emplace_back();
      if (tensor.sizes.size() < 2) {
        moment.whole = flat.next(tensor.sizes);
      } else {
        moment.row = row.next(without(tensor.sizes, 1));
        moment.column = column.next(without(tensor.sizes, 2));
      }
    }
  }
}

at::Tensor Adafactor::direction(const at::Tensor& gradient, Moment& moment) const {
  const double beta2 = 1.0 - std::pow(double(updates_), options_.decay_rate);
  const at::Tensor squared = gradient.square().add_(options_.epsilon1);
  at::Tensor step;
  if (moment.whole.defined()) {
    moment.whole.mul_(beta2).add_(squared, 1.0 - beta2);
    step = moment.whole.rsqrt().mul_(gradient);
  } else {
    moment.row.mul_(beta2).add_(row_means(squared), 1.0 - beta2);
    moment.column.mul_(beta2).add_(column_means(squared), 1.0 - beta2);
    const at::Tensor mean = row_means(moment.row.unsqueeze(-2).contiguous());  // [..., 1]
    const at::Tensor row = moment.row.div(mean).rsqrt_().unsqueeze(-1);
    step = row.mul(moment.column.unsqueeze(-2).rsqrt()).mul_(gradient);
  }
  return step.div_(std::max(1.0, root_mean_square(step) / options_.clip_threshold));
}

void Adafactor::update(at::Tensor& gradient, const std::vector<double>& learning_rates) {
  auto moment = moments_.begin();
  for (size_t i = 0; i < groups_.size(); ++i) {
    for (const FlatTensor& tensor : groups_[i].tensors) {
      const at::Tensor parameter = tensor.of(parameters_);
      double lr = learning_rates[i];
      if (options_.scale_parameter) lr *= std::max(options_.epsilon2, root_mean_square(parameter));
      const at::Tensor step = direction(tensor.of(gradient), *moment++).mul_(lr);
      if (groups_[i].weight_decay != 0) parameter.add_(parameter, -groups_[i].weight_decay * lr);
      parameter.sub_(step);
    }
  }
}

}  // namespace lorashard
