"""UNet2DConditionModel against diffusers 0.42.1."""

import pytest
import torch
import unet_cases
from unet_cases import CONFIGS, make_inputs, make_unet, relative_error, run_probe


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    made = {}

    def get(name):
        if name not in made:
            folder, unet = tmp_path_factory.mktemp(name), make_unet(name)
            unet.save_pretrained(folder / "unet")
            made[name] = (folder, unet)
        return made[name]

    return get


def forward(unet, inputs):
    with torch.no_grad():
        return unet_cases.forward(unet, inputs)


# 64 x 48 goes through oneDNN's convolutions and the flash kernel, the small ones through this project's own.
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [dict(), dict(batch=3, height=16, width=24, tokens=20), dict(batch=1, height=64, width=48)])
def test_output_is_that_of_diffusers(saved, name, size):
    folder, unet = saved(name)
    inputs = make_inputs(unet, **size)
    found, _ = run_probe(folder, inputs, threads=2)
    error = relative_error(found["output"], forward(unet, inputs))
    print(f"{name} {size}: relative error {error:.2e}")
    assert error <= 1e-5


@pytest.mark.parametrize("name", CONFIGS)
def test_parameter_names_are_the_state_dict_keys_of_diffusers(saved, name):
    folder, unet = saved(name)
    _, out = run_probe(folder, make_inputs(unet))
    assert sorted((out / "parameters.txt").read_text().split()) == sorted(unet.state_dict())


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_bf16_stays_as_near_to_fp32_as_that_of_diffusers(saved, name):
    folder, unet = saved(name)
    inputs = make_inputs(unet)
    expected = forward(unet, inputs)
    found, _ = run_probe(folder, inputs, dtype="bfloat16")
    # Time ids stay fp32 in lorashard: bf16 has no 1001.
    half = {key: value.bfloat16() if value.is_floating_point() and key != "time_ids" else value
            for key, value in inputs.items()}
    theirs = relative_error(forward(make_unet(name).bfloat16(), half), expected)
    ours = relative_error(found["output"], expected)
    print(f"{name} bf16: ours {ours:.2e}, diffusers {theirs:.2e}")
    assert ours <= 1.5 * theirs
