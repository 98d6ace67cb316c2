#include "trainer/loss_weights.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dist/error.h"

namespace lorashard {
namespace {

constexpr double kMostSnr = 1000;  // sd-scripts' bound: the first timesteps have almost no noise

/// min(snr, gamma), divided as the prediction asks for. The quotients by snr alone are written so that they hold at snr
/// 0 and infinity too; elsewhere they are the scripts' to the bit.
at::Tensor min_snr_weights(const at::Tensor& snr, const std::string& prediction_type, const LossOptions& options) {
  const double gamma = *options.snr_gamma;
  const auto over_snr = [&] { return (gamma / snr).clamp_max(1.0); };  // min(snr, gamma) / snr
  if (prediction_type == "epsilon") return over_snr();
  if (options.velocity_weight_at_least_one) return prediction_type == "v_prediction" ? over_snr() + 1.0 : over_snr();
  return prediction_type == "v_prediction" ? snr.clamp_max(gamma) / (snr + 1.0) : snr.clamp_max(gamma);
}

/// The width of Huber's quadratic part at each timestep, [B].
at::Tensor huber_threshold(const DDPMScheduler& scheduler, const at::Tensor& timesteps, const LossOptions& options) {
  const double c = options.huber_c;
  if (options.huber_schedule == "constant") return at::full({timesteps.size(0)}, c * options.huber_scale,
                                                            timesteps.options().dtype(at::kFloat));
  if (options.huber_schedule == "exponential") {
    const double alpha = -std::log(c) / static_cast<double>(scheduler.config().num_train_timesteps);
    return at::exp(-alpha * timesteps.to(at::kFloat)) * options.huber_scale;
  }
  LORASHARD_CHECK(options.huber_schedule == "snr", "huber_schedule '{}'", options.huber_schedule);
  const at::Tensor acp = scheduler.alphas_cumprod().to(timesteps.device()).index_select(0, timesteps);
  const at::Tensor sigmas = ((1.0 - acp) / acp).sqrt();
  return (1.0 - c) / (1.0 + sigmas).square() + c;
}

}  // namespace

at::Tensor timestep_weights(const DDPMScheduler& scheduler, const at::Tensor& timesteps, const LossOptions& options) {
  if (options.do_edm_style_training) return scheduler.sigmas(timesteps).pow(-2.0);
  const at::Tensor snr = scheduler.compute_snr(timesteps), bounded = snr.clamp_max(kMostSnr);
  const bool velocity = scheduler.config().prediction_type == "v_prediction";
  at::Tensor weights = at::ones_like(snr);
  if (options.snr_gamma) weights = weights * min_snr_weights(snr, scheduler.config().prediction_type, options);
  const at::Tensor scale = bounded / (bounded + 1.0);
  if (options.scale_v_pred_loss_like_noise_pred) weights = weights * scale;
  if (options.v_pred_like_loss != 0) weights = weights * (1.0 + options.v_pred_like_loss / scale);
  if (options.debiased_estimation_loss) weights = weights * (velocity ? 1.0 / (bounded + 1.0) : bounded.rsqrt());
  return weights;
}

at::Tensor elementwise_loss(const at::Tensor& model_pred, const at::Tensor& target, const DDPMScheduler& scheduler,
                            const at::Tensor& timesteps, const LossOptions& options) {
  if (options.loss_type == "l2") return at::mse_loss(model_pred, target, at::Reduction::None);
  if (options.loss_type == "l1") return at::l1_loss(model_pred, target, at::Reduction::None);
  const bool huber = options.loss_type == "huber";
  LORASHARD_CHECK(huber || options.loss_type == "smooth_l1", "loss_type '{}'", options.loss_type);
  const at::Tensor c = huber_threshold(scheduler, timesteps, options).view({-1, 1, 1, 1});
  const at::Tensor root = ((model_pred - target).square() + c.square()).sqrt() - c;
  return huber ? 2.0 * c * root : 2.0 * root;
}

}  // namespace lorashard
