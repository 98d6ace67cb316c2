"""The optimizer's part of a replay: parameter groups, learning rates, updates and their average, in the reference packages.

Only the gradients (before clipping) and the first weights come from the trace; the optimizer goes its own way over all steps.
"""

import re

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file


def group_of(recipe, key):
    """Name, learning rate and weight decay that the recipe gives the tensor `key` of a diffusers file."""
    options = recipe["optimizer"]
    path, part = re.fullmatch(r"(.+?)\.(?:lora_linear_layer\.|lora\.|)(down|up|lora_A|lora_B|lora_magnitude_vector)(?:\.weight)?",
                              key).groups()
    name, lr, decay = path.partition(".")[0], options["learning_rate"], options["adam_weight_decay"]
    if name.startswith("text_encoder"):
        lr = options.get("text_encoder_lr", lr) if options["optimizer"] != "prodigy" else lr
        decay = options.get("adam_weight_decay_text_encoder", decay)
    fits = [pattern for pattern in options["lr_pattern"] if f".{pattern}." in f".{path}."]
    if fits:
        pattern = max(fits, key=len)
        name, lr = f"{name}:{pattern}", options["lr_pattern"][pattern]
    if part not in ("down", "lora_A") and options["loraplus_lr_ratio"] != 1:
        name, lr = name + ".up", lr * options["loraplus_lr_ratio"]
    if part == "lora_magnitude_vector" and "adam_weight_decay_magnitude" in options:
        name, decay = name + ".magnitude", options["adam_weight_decay_magnitude"]
    return name, lr, decay


def reference_groups(recipe, weights):
    """torch's param_groups over `weights` (key -> parameter) with the names of ours."""
    groups = {}
    for key, weight in weights.items():
        name, lr, decay = group_of(recipe, key)
        groups.setdefault(name, {"params": [], "lr": lr, "weight_decay": decay, "name": name})["params"].append(weight)
    return list(groups.values())


def nearest_bytes():
    """bitsandbytes 0.50's CPU library looks small numbers up in a coarse table; from here on it takes its generic code instead."""
    import bitsandbytes.backends.cpu.ops as ops

    def quantize(values, code, absmax, out, blocksize):
        found, largest = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
        out.copy_(found.view(out.shape))
        absmax.copy_(largest)

    ops._quant_blockwise_fp32_direct = quantize


def reference_optimizer(options, groups):
    """The package that each optimizer is named after."""
    lr, betas, eps = options["learning_rate"], (options["adam_beta1"], options["adam_beta2"]), options["adam_epsilon"]
    name = options["optimizer"]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps)
    if name == "adamw8bit":
        import bitsandbytes

        nearest_bytes()
        return bitsandbytes.optim.AdamW8bit(groups, lr=lr, betas=betas, eps=eps)
    if name == "prodigy":
        import prodigyopt

        return prodigyopt.Prodigy(groups, lr=lr, betas=betas, eps=eps, beta3=options.get("prodigy_beta3"),
                                  decouple=options["prodigy_decouple"], d0=options["prodigy_d0"], d_coef=options["prodigy_d_coef"],
                                  use_bias_correction=options["prodigy_use_bias_correction"],
                                  safeguard_warmup=options["prodigy_safeguard_warmup"])
    if name == "adafactor":
        from transformers.optimization import Adafactor

        relative = options["adafactor_relative_step"]
        groups = [{**group, "lr": None} for group in groups] if relative else groups
        return Adafactor(groups, lr=None if relative else lr, relative_step=relative, warmup_init=options["adafactor_warmup_init"],
                         scale_parameter=options["adafactor_scale_parameter"])
    from lion_pytorch import Lion

    return Lion(groups, lr=lr, betas=(options["lion_beta1"], options["lion_beta2"]))


@torch.no_grad()
def limit_weight_norms(weights, scales, max_norm):
    """apply_max_norm_regularization of kohya's sd-scripts."""
    for key in [key for key in weights if key.endswith(("down.weight", "lora_A.weight"))]:
        down, up = weights[key], weights[key.replace(".down.", ".up.").replace("lora_A", "lora_B")]
        norm = (up.double().flatten(1) @ down.double().flatten(1) * scales[key]).norm().clamp(min=max_norm / 2)
        root = (norm.clamp(max=max_norm) / norm) ** 0.5
        down.mul_(root)
        up.mul_(root)


class ReplayUpdates:
    def __init__(self, recipe, trace, metrics, scales, run_dir):
        """`scales`: of each key the factor of its pair."""
        self.recipe, self.trace, self.metrics, self.scales, self.run_dir = recipe, trace, metrics, scales, run_dir
        self.weights = {key: torch.nn.Parameter(trace[f"init/{key}"].clone()) for key in sorted(scales)}
        self.groups = reference_groups(recipe, self.weights)
        self.optimizer = reference_optimizer(recipe["optimizer"], self.groups)
        schedule = recipe["lr_scheduler"]
        self.relative_step = recipe["optimizer"]["optimizer"] == "adafactor" and recipe["optimizer"]["adafactor_relative_step"]
        self.lr_scheduler = None if self.relative_step else get_scheduler(
            schedule["lr_scheduler"], self.optimizer, num_warmup_steps=schedule["lr_warmup_steps"],
            num_training_steps=recipe["train"]["max_train_steps"], num_cycles=schedule["lr_num_cycles"], power=schedule["lr_power"])
        ema = recipe["ema"]
        self.ema = ema["use_ema"] and EMAModel(
            self.weights.values(), decay=ema["ema_decay"], min_decay=ema["ema_min_decay"], use_ema_warmup=ema["use_ema_warmup"],
            update_after_step=ema["ema_update_after_step"], inv_gamma=ema["ema_inv_gamma"], power=ema["ema_power"])

    def _rates(self, step):
        if self.relative_step:
            first = 1e-6 * (step + 1) if self.recipe["optimizer"]["adafactor_warmup_init"] else 1e-2
            return [min(first, (step + 1) ** -0.5)] * len(self.groups)
        return [group["lr"] for group in self.optimizer.param_groups]

    def replay(self, steps, errors):
        for step in steps:
            for key, weight in self.weights.items():
                weight.grad = self.trace[f"step{step}/grad/{key}"].clone()
            norm = torch.nn.utils.clip_grad_norm_(self.weights.values(), self.recipe["train"]["max_grad_norm"])
            errors.compare("grad_norm", self.trace[f"step{step}/grad_norm"], norm, f"step{step}")
            rates = self._rates(step)
            single = lambda value: torch.tensor(value, dtype=torch.float32).item()
            # One rate for people: the UNet's, whose layers come first in the adapter.
            shown = next((rate for group, rate in zip(self.groups, rates) if group["name"].startswith("unet")), rates[0])
            errors.equal("lr", (self.metrics[step + 1]["lr"], self.trace[f"step{step}/lr"].item()), (shown, single(shown)), f"step{step}")
            found = {name.rpartition("/lr/")[2]: value.item() for name, value in self.trace.items()
                     if name.startswith(f"step{step}/lr/")}
            expected = {group["name"]: single(rate) for group, rate in zip(self.groups, rates)}
            errors.equal("lr", found, expected if len(expected) > 1 else {}, f"step{step}/lr/")
            self.optimizer.step()
            if "scale_weight_norms" in self.recipe["lora"]:
                limit_weight_norms(self.weights, self.scales, self.recipe["lora"]["scale_weight_norms"])
            if self.lr_scheduler:
                self.lr_scheduler.step()
            for key, weight in self.weights.items():
                errors.compare("weights", self.trace[f"step{step}/param/{key}"], weight.detach(), f"step{step}/param/{key}")
            if self.ema:
                self.ema.step(self.weights.values())

    def compare_average(self, scales, errors):
        """The exported adapter of a run whose every step was traced is the average."""
        exported = load_file(self.run_dir / "pytorch_lora_weights.safetensors")
        for (key, _), average in zip(self.weights.items(), self.ema.shadow_params):
            scale = scales[key] if ".up." in key or "lora_B" in key else 1.0
            errors.compare("weights", exported[key], scale * average, f"average of {key}")
