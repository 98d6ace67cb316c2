"""clip_gradient and each optimizer against the implementation it is named after, step by step from given gradients."""

import json
import os
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from replay_updates import nearest_bytes

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "optimizer_probe")


def group(name, shapes, lr, weight_decay=0.0):
    return {"name": name, "learning_rate": lr, "weight_decay": weight_decay, "shapes": [list(shape) for shape in shapes]}


def elements(groups):
    return sum(int(np.prod(shape)) for g in groups for shape in g["shapes"])


def inputs(groups, steps, magnitude=1e-2, decades=3, drift=0.0, seed=7):
    """Gradients whose size differs by so many decades from element to element, and a little from step to step; with `drift`
    each element's have a direction of its own besides."""
    generator = np.random.default_rng(seed)
    count = elements(groups)
    scale = magnitude * 10.0 ** generator.uniform(-decades, 0, count)
    parameters = generator.standard_normal(count)
    noise = generator.standard_normal((steps, count))
    gradients = (noise + drift * generator.choice((-1.0, 1.0), count)) * scale * generator.uniform(0.5, 1.5, (steps, 1))
    return torch.from_numpy(parameters.astype(np.float32)), torch.from_numpy(gradients.astype(np.float32))


def run_probe(folder, groups, parameters, gradients, recipe=(), max_norm=1e9, threads=1, restart_at=-1):
    case = {"recipe": list(recipe), "groups": groups, "max_norm": max_norm, "threads": threads, "restart_at": restart_at}
    save_file({"parameters": parameters, "gradients": gradients}, folder / "in.safetensors", {"case": json.dumps(case)})
    subprocess.run([PROBE, folder / "in.safetensors", folder / "out.safetensors"], check=True)
    return load_file(folder / "out.safetensors")


class Reference:
    """A torch optimizer over the same groups."""

    def __init__(self, groups, parameters, make):
        self.groups, self.parameters, offset = [], [], 0
        for g in groups:
            mine = []
            for shape in g["shapes"]:
                count = int(np.prod(shape))
                mine.append(torch.nn.Parameter(parameters[offset:offset + count].clone().view(shape)))
                offset += count
            self.groups.append({"params": mine, "lr": g["learning_rate"], "weight_decay": g["weight_decay"]})
            self.parameters += mine
        self.optimizer = make(self.groups)

    def flat(self):
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def step(self, gradient, max_norm=1e9):
        offset = 0
        for p in self.parameters:
            p.grad = gradient[offset:offset + p.numel()].clone().view(p.shape)
            offset += p.numel()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, max_norm).item()
        self.optimizer.step()
        return norm

    def state(self, name):
        return torch.cat([self.optimizer.state[p][name].reshape(-1) for p in self.parameters])


def relative(got, want):
    return ((got.double() - want.double()).norm() / want.double().norm().clamp_min(1e-30)).item()


def run_both(folder, groups, steps, make, recipe, max_norm=1e9, magnitude=1e-2, decades=3, drift=0.0):
    """Both over the same gradients. Returns our output, the reference, its parameters after each step and its norms."""
    torch.set_num_threads(1)
    parameters, gradients = inputs(groups, steps, magnitude, decades, drift)
    got = run_probe(folder, groups, parameters, gradients, recipe, max_norm)
    reference = Reference(groups, parameters, make)
    after, norms = [], []
    for gradient in gradients:
        norms.append(reference.step(gradient, max_norm))
        after.append(reference.flat())
    return got, reference, torch.stack([parameters, *after]), torch.tensor(norms, dtype=torch.float64)


def worst_error(got, after):
    """Of the way gone from the start, at any step: the largest relative L2 error."""
    start = after[0].double()
    return max(relative(found.double() - start, want.double() - start) for found, want in zip(got, after[1:]))


# ---- AdamW and clipping

ADAMW_CASES = [
    # groups, betas, epsilon, max_norm, magnitude of the gradients
    ([group("unet", [(100003,)], 1e-4, 1e-2)], (0.9, 0.999), 1e-8, 1.0, 1e-2),
    ([group("unet", [(64, 64)], 1e-3, 0.1)], (0.8, 0.95), 1e-6, 0.5, 1.0),
    ([group("unet", [(17,)], 1e-2, 0.0)], (0.9, 0.999), 1e-8, 1e9, 1e-5),
    ([group("unet", [(70001,)], 1e-4, 1e-2)], (0.9, 0.999), 1e-8, 1e9, 1.0),
    ([group("unet", [(4, 320), (320, 4), (7,)], 5e-5, 1e-4), group("text_encoder", [(8, 33), (33, 8)], 1e-3, 0.2)],
     (0.95, 0.98), 1e-10, 1e-3, 1e3),
]


def adamw_recipe(betas, epsilon):
    return [f"optimizer.adam_beta1={betas[0]!r}", f"optimizer.adam_beta2={betas[1]!r}", f"optimizer.adam_epsilon={epsilon!r}"]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
@pytest.mark.parametrize("case", ADAMW_CASES, ids=lambda case: f"{elements(case[0])}")
def test_adamw_ends_where_torch_ends(tmp_path, case, fused):
    groups, betas, epsilon, max_norm, magnitude = case
    make = lambda g: torch.optim.AdamW(g, lr=1.0, betas=betas, eps=epsilon, fused=fused)
    got, reference, after, norms = run_both(tmp_path, groups, 20, make, adamw_recipe(betas, epsilon), max_norm, magnitude)
    state = [relative(got[f"state/{name}"], reference.state(name)) for name in ("exp_avg", "exp_avg_sq")]
    error = relative(got["parameters"][-1], after[-1])
    print(f"relative L2: parameters {error:.1e}, moments {max(state):.1e}; way gone {worst_error(got['parameters'], after):.1e}; "
          f"norm {(got['norms'] / norms - 1).abs().max():.1e}")
    if fused and norms.max() < max_norm and len(groups[0]["shapes"]) == 1:  # nothing clipped: the same kernel on the same numbers
        assert torch.equal(got["parameters"], after[1:]) and torch.equal(got["state/exp_avg"], reference.state("exp_avg"))
    # torch's norm, summed in fp32, is what differs by up to 7e-6, and with it the moments of a clipped gradient.
    assert error < 1e-6 and max(state) < 2e-5
    assert (got["parameters"] - after[1:]).abs().max() < 1e-6
    torch.testing.assert_close(got["norms"], norms, rtol=1e-5, atol=0)
    exact = inputs(groups, 20, magnitude)[1].double().norm(dim=1)
    torch.testing.assert_close(got["norms"], exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("case", ADAMW_CASES[:2], ids=lambda case: f"{elements(case[0])}")
def test_the_same_bits_again_and_the_norm_at_any_number_of_threads(tmp_path, case):
    groups, betas, epsilon, max_norm, magnitude = case
    run = lambda threads: run_probe(tmp_path, groups, *inputs(groups, 20, magnitude), adamw_recipe(betas, epsilon), max_norm, threads)
    first, again = run(1), run(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    for threads in (2, 3, 4):
        got, got_again = run(threads), run(threads)
        assert torch.equal(got["norms"], first["norms"])
        assert torch.equal(got["parameters"], got_again["parameters"])
        print(f"{threads} threads: {(got['parameters'] != first['parameters']).sum()} values differ from one thread")


# ---- every optimizer

MIXED = [group("unet", [(4, 320), (320, 4), (300,), (64, 4, 3, 3), (160, 640)], 1e-4, 1e-2), group("text_encoder", [(8, 33), (33, 8)], 5e-5, 0.1)]


ONE_RATE = [{**g, "learning_rate": 1.0} for g in MIXED]


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "prodigy", "adafactor", "lion"])
def test_a_restart_and_more_threads_change_no_bit(tmp_path, optimizer):
    groups = ONE_RATE if optimizer == "prodigy" else MIXED
    parameters, gradients = inputs(groups, 8)
    recipe = [f"optimizer.optimizer={optimizer}"]
    whole = run_probe(tmp_path, groups, parameters, gradients, recipe)
    assert any(name.startswith("state/") for name in whole)
    for restart_at in (1, 5):
        again = run_probe(tmp_path, groups, parameters, gradients, recipe, restart_at=restart_at)
        assert all(torch.equal(whole[name], again[name]) for name in whole), restart_at
    if optimizer != "adamw":  # torch's fused kernel rounds differently where threads meet
        threaded = run_probe(tmp_path, groups, parameters, gradients, recipe, threads=3)
        assert all(torch.equal(whole[name], threaded[name]) for name in whole)


# ---- 8-bit AdamW

BLOCKS = [group("unet", [(16, 320), (320, 16), (4, 320), (300,), (5000,)], 1e-3, 1e-2), group("text_encoder", [(64, 100)], 5e-4, 0.1)]


def blocks_of(state, name):
    """bitsandbytes' 8-bit moment of several tensors as blocks, their ends filled with zeros, and which of the bytes are real."""
    pad = lambda x: torch.nn.functional.pad(x, (0, -x.numel() % 256)).view(-1, 256)
    return (torch.cat([pad(s[name].flatten()) for s in state]),
            torch.cat([pad(torch.ones(s[name].numel(), dtype=torch.bool)) for s in state]))


@pytest.mark.parametrize("table", ["nearest", "as installed"])
def test_adamw8bit_ends_where_bitsandbytes_ends(tmp_path, monkeypatch, table):
    """Tensors of 4096 elements and more have 8-bit moments; (4, 320) and (300,) are smaller; most end within a block.

    bitsandbytes 0.50's CPU library looks small numbers up in a coarse table: 0 becomes 1.6e-5 of a block's largest. Its generic
    code, taken for any type but float, half and bfloat16, chooses the nearest byte; so do we.
    """
    import bitsandbytes
    import bitsandbytes.backends.cpu.ops as ops

    if table == "nearest":
        monkeypatch.setattr(ops, "_quant_blockwise_fp32_direct", ops._quant_blockwise_fp32_direct)  # put back afterwards
        nearest_bytes()
    steps = 50
    make = lambda g: bitsandbytes.optim.AdamW8bit(g, betas=(0.9, 0.999), eps=1e-8)
    got, reference, after, _ = run_both(tmp_path, BLOCKS, steps, make, ["optimizer.optimizer=adamw8bit"], decades=1)
    exact = Reference(BLOCKS, after[0], lambda g: torch.optim.AdamW(g, lr=1.0))
    for gradient in inputs(BLOCKS, steps, decades=1)[1]:
        exact.step(gradient)
    way = lambda p: p.double() - after[0].double()
    error = worst_error(got["parameters"], after)
    rounding = relative(way(got["parameters"][-1]), way(exact.flat()))
    theirs = relative(way(after[-1]), way(exact.flat()))
    state = [reference.optimizer.state[p] for p in reference.parameters]
    quantized = [s for s in state if s["state1"].dtype == torch.uint8]
    assert [s["state1"].numel() for s in quantized] == [5120, 5120, 5000, 6400]
    codes = {}
    for name in ("1", "2"):
        blocks, real = blocks_of(quantized, f"state{name}")
        found = got[f"state/state{name}"]
        assert found.dtype == torch.uint8 and found.shape == blocks.shape
        codes[name] = ((found.int() - blocks.int()).abs()[real] > 0).double().mean().item()
    print(f"way gone: {error:.1e} from bitsandbytes; from AdamW in fp32 we are {rounding:.1e}, bitsandbytes {theirs:.1e}; "
          f"bytes that differ {codes}")
    small = slice(10240, 10240 + 1280 + 300)  # fp32 moments: nothing is rounded to a byte between the two
    assert relative(way(got["parameters"][-1])[small], way(after[-1])[small]) < 1e-5
    assert rounding < 1.05 * theirs, "further from fp32 than bitsandbytes is"
    if table == "nearest":
        assert error < 1e-3 and all(share < 2e-3 for share in codes.values())
        for name in ("1", "2"):
            assert relative(got[f"state/absmax{name}"], torch.cat([s[f"absmax{name}"] for s in quantized])) < 1e-4
    else:
        assert error < 2 * theirs, "further apart than bitsandbytes is from fp32"


def test_the_maps_of_8_bit_numbers_are_those_of_bitsandbytes(tmp_path):
    """One step from zero: the moments are (1 - beta) g and (1 - beta) g^2 exactly, and the bytes what bitsandbytes makes of them."""
    from bitsandbytes.functional import create_dynamic_map, dequantize_blockwise, QuantState

    groups = [group("unet", [(64, 256)], 1e-3)]
    parameters, gradients = inputs(groups, 1, 1.0)
    got = run_probe(tmp_path, groups, parameters, gradients, ["optimizer.optimizer=adamw8bit"])
    g = gradients[0].view(64, 256)
    for name, moment, signed in (("1", g * 0.1, True), ("2", g * g * 0.001, False)):
        code = create_dynamic_map(signed=signed)
        found = code[got[f"state/state{name}"].long()] * got[f"state/absmax{name}"][:, None]
        torch.testing.assert_close(got[f"state/absmax{name}"], moment.abs().amax(1), rtol=1e-5, atol=0)
        scaled = moment / moment.abs().amax(1, keepdim=True)
        nearest = (scaled[..., None] - code).abs().amin(-1)  # no code is nearer than the one chosen
        assert ((found / moment.abs().amax(1, keepdim=True) - scaled).abs() - nearest).max() < 1e-6


# ---- Prodigy

PRODIGY = [group("unet", [(8, 40), (40, 8), (50,)], 1.0, 1e-2), group("text_encoder", [(8, 33)], 1.0, 0.1)]
PRODIGY_CASES = {  # our keys, their arguments, drift: d must grow, but not without end
    "the scripts' defaults": ({}, {"use_bias_correction": True, "safeguard_warmup": True}, 1.0),
    "prodigyopt's defaults": ({"prodigy_use_bias_correction": "false", "prodigy_safeguard_warmup": "false"}, {}, 0.0),
    "coupled decay, beta3, d0, d_coef": (
        {"prodigy_decouple": "false", "prodigy_beta3": 0.9, "prodigy_d0": 1e-5, "prodigy_d_coef": 0.5},
        {"use_bias_correction": True, "safeguard_warmup": True, "decouple": False, "beta3": 0.9, "d0": 1e-5, "d_coef": 0.5}, 0.0),
    "no first moment": ({"adam_beta1": 0.0}, {"betas": (0.0, 0.999), "use_bias_correction": True, "safeguard_warmup": True}, 0.3),
}


@pytest.mark.parametrize("case", PRODIGY_CASES)
def test_prodigy_ends_where_prodigyopt_ends(tmp_path, case, monkeypatch):
    import prodigyopt

    # It sums in fp32, in the order of this processor's library: up to 8e-5 of d in some orders. In double, as we do, the order doesn't show.
    monkeypatch.setattr(torch, "dot", lambda a, b, dot=torch.dot: dot(a.double(), b.double()))
    monkeypatch.setattr(torch.Tensor, "sum", lambda self, *args, own=torch.Tensor.sum, **kwargs: own(self.double(), *args, **kwargs))
    ours, theirs, drift = PRODIGY_CASES[case]
    recipe = ["optimizer.optimizer=prodigy", *(f"optimizer.{key}={value}" for key, value in ours.items())]
    got, reference, after, _ = run_both(tmp_path, PRODIGY, 100, lambda g: prodigyopt.Prodigy(g, **theirs), recipe, drift=drift)
    d = reference.optimizer.param_groups[0]["d"]
    error = max(relative(*pair) for pair in zip(got["parameters"], after[1:]))
    print(f"{case}: parameters {error:.1e}, d {got['state/d'].item() / d - 1:.1e}; d grew {d / theirs.get('d0', 1e-6):.3g}-fold; "
          f"way gone {worst_error(got['parameters'], after):.1e}")
    assert d > 10 * theirs.get("d0", 1e-6), "the estimate never grew"
    assert error < 5e-6 and worst_error(got["parameters"], after) < 1e-4 and abs(got["state/d"].item() / d - 1) < 1e-5
    assert got["state/k"].item() == 100


# ---- Adafactor

ADAFACTOR = [group("unet", [(4, 320), (320, 4), (300,), (16, 4, 3, 3)], 1e-3, 1e-2), group("text_encoder", [(8, 33), (33, 8)], 5e-4)]


@pytest.mark.parametrize("scale_parameter", [False, True])
@pytest.mark.parametrize("magnitude", [1e-2, 10.0])
def test_adafactor_ends_where_transformers_ends(tmp_path, scale_parameter, magnitude):
    from transformers.optimization import Adafactor

    make = lambda g: Adafactor(g, scale_parameter=scale_parameter, relative_step=False)
    recipe = ["optimizer.optimizer=adafactor", f"optimizer.adafactor_scale_parameter={str(scale_parameter).lower()}"]
    got, reference, after, _ = run_both(tmp_path, ADAFACTOR, 50, make, recipe, magnitude=magnitude)
    error = worst_error(got["parameters"], after)
    factored = [p for p in reference.parameters if p.dim() > 1]
    for name in ("row", "col"):
        theirs = torch.cat([reference.optimizer.state[p][f"exp_avg_sq_{name}"].flatten() for p in factored])
        assert relative(got[f"state/exp_avg_sq_{name}"], theirs) < 1e-6
    print(f"way gone: {error:.1e}")
    assert error < 1e-5


# ---- Lion


def test_lion_ends_where_lion_pytorch_ends(tmp_path):
    from lion_pytorch import Lion

    recipe = ["optimizer.optimizer=lion", "optimizer.lion_beta1=0.95", "optimizer.lion_beta2=0.98"]
    got, reference, after, _ = run_both(tmp_path, MIXED, 50, lambda g: Lion(g, betas=(0.95, 0.98)), recipe)
    differ = (got["parameters"][-1] - after[-1]).abs()
    print(f"largest difference {differ.max():.1e}, way gone {worst_error(got['parameters'], after):.1e}")
    assert differ.max() < 1e-6 and relative(got["state/exp_avg"], reference.state("exp_avg")) < 1e-6
