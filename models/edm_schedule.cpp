#include "models/edm_schedule.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

std::vector<float> to_vector(const at::Tensor& tensor) {
  const at::Tensor values = tensor.contiguous();
  return {values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel()};
}

}  // namespace

std::vector<float> edm_sigmas(const EDMSchedulerConfig& config, int64_t count) {
  at::Tensor sigmas;
  if (config.sigma_schedule == "exponential") {
    sigmas = at::linspace(std::log(config.sigma_min), std::log(config.sigma_max), count + 1, at::kFloat).exp().flip(0);
  } else {
    const double first = std::pow(config.sigma_max, 1 / config.rho), last = std::pow(config.sigma_min, 1 / config.rho);
    const at::Tensor ramp = at::linspace(0, 1, count + 1, at::kDouble);
    sigmas = at::pow(first + ramp * (last - first), config.rho).to(at::kFloat);
  }
  return to_vector(sigmas);
}

std::vector<float> edm_timesteps(const std::vector<float>& sigmas) { return to_vector(edm_precondition_noise(at::tensor(sigmas))); }

double edm_init_noise_sigma(const EDMSchedulerConfig& config) { return std::sqrt(config.sigma_max * config.sigma_max + 1); }

at::Tensor edm_precondition_inputs(const EDMSchedulerConfig& config, const at::Tensor& sample, const at::Tensor& sigmas) {
  return sample * (1.0 / (sigmas.square() + config.sigma_data * config.sigma_data).sqrt());
}

at::Tensor edm_precondition_noise(const at::Tensor& sigmas) { return 0.25 * sigmas.log(); }

at::Tensor edm_precondition_outputs(const EDMSchedulerConfig& config, const std::string& prediction_type, const at::Tensor& sample,
                                    const at::Tensor& model_output, const at::Tensor& sigmas) {
  LORASHARD_CHECK(prediction_type == "epsilon" || prediction_type == "v_prediction", "prediction_type '{}'", prediction_type);
  const double data_variance = config.sigma_data * config.sigma_data;
  const at::Tensor variance = sigmas.square() + data_variance;
  const at::Tensor c_skip = data_variance / variance, c_out = sigmas * config.sigma_data / variance.sqrt();
  return c_skip * sample + (prediction_type == "epsilon" ? c_out : -c_out) * model_output;
}

EDMSchedule::EDMSchedule(const DDPMSchedulerConfig& config) {
  LORASHARD_CHECK(config.edm.has_value(), "a schedule of EDM's for another base");
  // One level more than there are timesteps: the cleanest isn't trained on.
  const std::vector<float> sigmas = edm_sigmas(*config.edm, config.num_train_timesteps);
  sigmas_ = at::tensor(sigmas).slice(0, 0, config.num_train_timesteps).flip(0).contiguous();
}

at::Tensor EDMSchedule::sigmas(const at::Tensor& timesteps) const {
  return sigmas_.to(timesteps.device()).index_select(0, timesteps);
}

}  // namespace lorashard
