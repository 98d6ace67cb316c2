// What the loss of an image is worth at its timestep, and which element-wise loss is taken: min-SNR (arXiv 2303.09556),
// debiased estimation (arXiv 2310.08442), scaled v-prediction, Huber (arXiv 2403.16728). Formulas of diffusers' example
// scripts (snr_gamma) and of kohya's sd-scripts (library/custom_train_functions.py, train_util.py: the rest). Called by
// trainer/diffusion_loss.cpp. Everything is fp32 on the device of its input; no state.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string>

#include "models/ddpm_scheduler.h"

namespace lorashard {

struct LossOptions {
  // Noise.
  double noise_offset = 0;
  std::optional<double> adaptive_noise_scale;
  double input_perturbation = 0;
  bool do_edm_style_training = false;  ///< predictions of the latents themselves, weighed by sigma^-2
  // Element-wise loss.
  std::string loss_type = "l2";  ///< or "l1", "huber", "smooth_l1"
  std::string huber_schedule = "snr";  ///< or "exponential", "constant"
  double huber_c = 0.1, huber_scale = 1;
  // Weight of an image by its timestep.
  std::optional<double> snr_gamma;
  bool velocity_weight_at_least_one = false;  ///< snr_gamma with v_prediction: min/snr + 1, not min/(snr + 1)
  bool scale_v_pred_loss_like_noise_pred = false;
  double v_pred_like_loss = 0;
  bool debiased_estimation_loss = false;
  // Mask: the loss counts where it is white.
  bool masked_loss = false;
  double unmasked_weight = 0;  ///< the least that a mask may weigh
  bool normalize_masked_area_loss = false;

  bool weighs_timesteps() const {
    return do_edm_style_training || snr_gamma || scale_v_pred_loss_like_noise_pred || v_pred_like_loss != 0 || debiased_estimation_loss;
  }
};

/// The product of the weights `options` ask for, [B]; `timesteps` int64 [B].
at::Tensor timestep_weights(const DDPMScheduler& scheduler, const at::Tensor& timesteps, const LossOptions& options);

/// Without reduction: the shape of `model_pred`, which is fp32 as `target` is.
at::Tensor elementwise_loss(const at::Tensor& model_pred, const at::Tensor& target, const DDPMScheduler& scheduler,
                            const at::Tensor& timesteps, const LossOptions& options);

}  // namespace lorashard
