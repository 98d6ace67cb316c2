"""Noise and loss of a micro-batch as the reference scripts compute them: diffusers' train_text_to_image*.py (noise_offset,
input_perturbation, snr_gamma) and kohya's sd-scripts (library/custom_train_functions.py, train_util.py: the rest)."""

import math

import draws_reference as draws
import philox_reference as philox
import torch
import torch.nn.functional as F
from diffusers import EDMEulerScheduler, EulerDiscreteScheduler
from diffusers.training_utils import compute_snr


def noise(recipe, latents, rows):
    """What the target knows of, and what is added to the latents. rows: [(slot, shift of the purposes)]."""
    seed, train, options = recipe["seed"], recipe["train"], recipe["noise"]
    shape = tuple(latents.shape[1:])
    draw = lambda purpose, shape: torch.stack([torch.from_numpy(philox.normal(seed, slot, purpose + shift, shape))
                                                for slot, shift in rows])
    strengths = lambda purpose: torch.tensor([philox.uniform(seed, slot, purpose + shift) for slot, shift in rows],
                                             dtype=torch.float32).view(-1, 1, 1, 1)
    noise = draw(philox.NOISE, shape)
    if options.get("multires_noise_iterations"):
        noise = torch.stack([draws.multires_noise(image, options["multires_noise_iterations"], options["multires_noise_discount"], seed, slot, shift)
                             for image, (slot, shift) in zip(noise, rows)])
    if train.get("noise_offset"):
        strength = train["noise_offset"]
        if "adaptive_noise_scale" in options:
            mean = latents.mean(dim=(2, 3), keepdim=True).abs()
            strength = torch.clamp(strength + options["adaptive_noise_scale"] * mean, 0.0, None)
        if options.get("noise_offset_random_strength"):
            strength = strength * strengths(philox.NOISE_OFFSET_STRENGTH)
        noise = noise + strength * draw(philox.NOISE_OFFSET, (shape[0], 1, 1))
    new_noise = noise
    if train.get("input_perturbation"):
        strength = train["input_perturbation"]
        if options.get("input_perturbation_random_strength"):
            strength = strength * strengths(philox.INPUT_PERTURBATION_STRENGTH)
        new_noise = noise + strength * draw(philox.INPUT_PERTURBATION, shape)
    return noise, new_noise


def loss(recipe, scheduler, model_pred, target, timesteps, mask=None, image_weights=None, by_timestep=True):
    """by_timestep: weigh images by their timesteps, which DreamBooth's class images aren't."""
    train, options = recipe["train"], recipe["loss"]
    velocity = scheduler.config.prediction_type == "v_prediction"
    losses = elementwise(options, scheduler, model_pred.float(), target.float(), timesteps)
    if options.get("masked_loss"):
        mask = torch.clamp(mask, options["unmasked_weight"], 1)
        losses = losses * mask
    losses = losses.mean(dim=list(range(1, len(losses.shape))))
    if options.get("masked_loss") and options["normalize_masked_area_loss"]:  # OneTrainer's masked_losses
        losses = losses / mask.mean(dim=(1, 2, 3))
    if image_weights is not None:
        losses = losses * image_weights
    if isinstance(scheduler, EDMEulerScheduler):  # "we are not doing weighting here"
        return losses.mean()
    if train.get("do_edm_style_training"):
        sigmas = euler_sigmas(EulerDiscreteScheduler.from_config(scheduler.config), timesteps)
        return (losses * sigmas**-2.0).mean()
    if not by_timestep:
        return losses.mean()
    snr = compute_snr(scheduler, timesteps)
    if train.get("snr_gamma"):
        weights = torch.stack([snr, train["snr_gamma"] * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
        at_least_one = recipe["task"] == "dreambooth"  # train_dreambooth_lora_sdxl.py
        losses = losses * ((weights / snr + 1 if at_least_one else weights / (snr + 1)) if velocity else weights / snr)
    snr = torch.minimum(snr, torch.ones_like(snr) * 1000)
    scale = snr / (snr + 1)
    if options.get("scale_v_pred_loss_like_noise_pred"):
        losses = losses * scale
    if options.get("v_pred_like_loss"):
        losses = losses + losses / scale * options["v_pred_like_loss"]
    if options.get("debiased_estimation_loss"):
        losses = losses * (1 / (snr + 1) if velocity else 1 / torch.sqrt(snr))
    return losses.mean()


def elementwise(options, scheduler, model_pred, target, timesteps):
    kind = options["loss_type"]
    if kind in ("l2", "l1"):
        return {"l2": F.mse_loss, "l1": F.l1_loss}[kind](model_pred, target, reduction="none")
    c = huber_threshold(options, scheduler, timesteps).view(-1, 1, 1, 1)
    root = torch.sqrt((model_pred - target) ** 2 + c**2) - c
    return 2 * c * root if kind == "huber" else 2 * root


def huber_threshold(options, scheduler, timesteps):
    c, scale = options["huber_c"], options["huber_scale"]
    if options["huber_schedule"] == "constant":
        return torch.full((len(timesteps),), c * scale)
    if options["huber_schedule"] == "exponential":
        return torch.exp(math.log(c) / scheduler.config.num_train_timesteps * timesteps) * scale
    alphas_cumprod = scheduler.alphas_cumprod[timesteps]
    sigmas = ((1.0 - alphas_cumprod) / alphas_cumprod) ** 0.5
    return (1 - c) / (1 + sigmas) ** 2 + c


def euler_sigmas(scheduler, timesteps):
    """get_sigmas of the script: those of the scheduler's own timesteps."""
    indices = [(scheduler.timesteps == t).nonzero().item() for t in timesteps]
    return scheduler.sigmas[indices].flatten()
