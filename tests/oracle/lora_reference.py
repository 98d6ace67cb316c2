"""The adapter's options as peft has them, and its random numbers as docs/determinism.md specifies them."""

import torch
from peft import LoraConfig

import philox_reference as philox

PRESETS = {"attention": ["to_q", "to_k", "to_v", "to_out.0", "q_proj", "k_proj", "v_proj", "out_proj"],
           "attention+ff": ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "q_proj", "k_proj", "v_proj", "out_proj",
                            "fc1", "fc2"]}


class PhiloxDropout(torch.nn.Module):
    """In the place of peft's dropout. `rows`: (slot, whether it is the class image) of each row of the batch."""

    def __init__(self, seed, position, p, as_tokens):
        super().__init__()
        self.seed, self.position, self.p, self.as_tokens, self.rows = seed, position, p, as_tokens, []

    def forward(self, x):
        seen = x.flatten(2).transpose(1, 2) if self.as_tokens else x
        assert len(self.rows) == len(x)
        keep = torch.stack([torch.from_numpy(philox.dropout_mask(self.seed, slot, self.position, self.p, tuple(seen.shape[1:]), is_class))
                            for slot, is_class in self.rows])
        if self.as_tokens:
            keep = keep.transpose(1, 2).reshape(x.shape)
        return torch.where(keep, x * (1 / (1 - self.p)), torch.zeros(()))


class RankDropout:
    """Drops ranks of what peft's lora_A gives, as LoRAModule.forward of kohya's sd-scripts does between lora_down and lora_up."""

    def __init__(self, seed, position, rank_p, module_p):
        self.seed, self.position, self.rank_p, self.module_p, self.rows = seed, position, rank_p, module_p, []

    def __call__(self, module, inputs, low):
        rank = module.weight.shape[0]
        assert len(self.rows) == len(low)
        keep = torch.stack([torch.from_numpy(self._keeps(slot, is_class, rank)) for slot, is_class in self.rows])
        keep = keep[:, :, None, None] if isinstance(module, torch.nn.Conv2d) else keep.view(len(low), *[1] * (low.dim() - 2), rank)
        return low * keep * (1.0 / (1.0 - self.rank_p))

    def _keeps(self, slot, is_class, rank):
        shift = philox.CLASS_IMAGE if is_class else 0
        is_left_out = philox.uniform(self.seed, slot, philox.MODULE_DROPOUT + shift + (self.position << 16)) < self.module_p
        mask = philox.dropout_mask(self.seed, slot, self.position, self.rank_p, (rank,), is_class, philox.RANK_DROPOUT)
        return mask & (not is_left_out)


def put_rank_dropout(models, seed, rank_p, module_p):
    """After lora_A of every adapted layer of `models`, numbered on from one model to the next."""
    made = []
    for layer in (module for model in models for module in model.modules() if hasattr(module, "lora_A")):
        made.append(RankDropout(seed, len(made), rank_p, module_p))
        layer.lora_A["default"].register_forward_hook(made[-1])
    return made


def put_dropout(models, seed, p):
    """Replaces the dropout of every adapted layer of `models`, numbered on from one model to the next."""
    made = []
    for model in models:
        for name, module in model.named_modules():
            if not hasattr(module, "lora_dropout"):
                continue
            pointwise = name.endswith(("proj_in", "proj_out")) and isinstance(module.get_base_layer(), torch.nn.Conv2d)
            module.lora_dropout["default"] = PhiloxDropout(seed, len(made), p, pointwise)
            made.append(module.lora_dropout["default"])
    return made


def lora_config(lora, target_modules):
    """peft's of a recipe's [lora]; its targets by suffix or by the attention presets."""
    targets = [name for target in target_modules for name in PRESETS.get(target, [target])]
    return LoraConfig(r=lora["rank"], lora_alpha=lora["lora_alpha"], target_modules=targets, init_lora_weights="gaussian",
                      use_dora=lora["use_dora"], use_rslora=lora["use_rslora"], rank_pattern=dict(lora["rank_pattern"]),
                      alpha_pattern=dict(lora["alpha_pattern"]))


def first_down(init, seed, position, shape):
    if init == "kaiming":
        return torch.from_numpy(philox.kaiming_uniform(seed, position, shape))
    return torch.from_numpy(philox.normal(seed, position, philox.LORA_INIT, shape)) / shape[0]
