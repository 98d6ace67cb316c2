"""The moving average against diffusers' EMAModel, over the parameters that an optimizer makes."""

import pytest
import torch
from diffusers.training_utils import EMAModel

from test_optimizer import group, inputs, run_probe

GROUPS = [group("unet", [(40, 50)], 1e-2)]
CASES = [
    {},
    {"ema_decay": 0.5},
    {"ema_decay": 0.99, "ema_update_after_step": 10},
    {"use_ema_warmup": True},
    {"use_ema_warmup": True, "ema_inv_gamma": 5.0, "ema_power": 0.75, "ema_min_decay": 0.3, "ema_update_after_step": 3},
]


@pytest.mark.parametrize("options", CASES, ids=str)
def test_the_average_is_that_of_diffusers(tmp_path, options):
    parameters, gradients = inputs(GROUPS, 40)
    recipe = ["ema.use_ema=true", *(f"ema.{key}={str(value).lower()}" for key, value in options.items())]
    got = run_probe(tmp_path, GROUPS, parameters, gradients, recipe)
    weight = torch.nn.Parameter(parameters.clone())
    names = {"ema_decay": "decay", "ema_min_decay": "min_decay", "ema_update_after_step": "update_after_step",
             "ema_inv_gamma": "inv_gamma", "ema_power": "power"}
    model = EMAModel([weight], **{names.get(key, key): value for key, value in options.items()})
    for step, after in enumerate(got["parameters"]):
        weight.data.copy_(after)
        model.step([weight])
        assert torch.equal(got["average"][step], model.shadow_params[0]), f"step {step}, decay {model.cur_decay_value}"
    assert not torch.equal(got["average"][-1], got["parameters"][-1])
