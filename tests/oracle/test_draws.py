"""Captions and timesteps of the program against a second implementation of docs/determinism.md (equal), the distribution of timesteps
against the weights of diffusers' train_text_to_image_sdxl.py, and multi-resolution noise against sd-scripts' formula in torch (1e-6)."""

import json
import os
import subprocess
from argparse import Namespace

import draws_reference as reference
import philox_reference as philox
import pytest
import torch

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "draws_probe")
TAGS = "a cat, on a mat , ,in the sun, 日本語 のタグ,x,y,z"
CAPTIONS = [
    {"candidates": [TAGS], "options": {}},
    {"candidates": ["one", "two, 2", "three"], "options": {}},
    {"candidates": [TAGS], "options": {"shuffle_caption": True}},
    {"candidates": [TAGS, "b,c"], "options": {"shuffle_caption": True, "keep_tokens": 2, "caption_prefix": "photo of"}},
    {"candidates": [TAGS], "options": {"shuffle_caption": True, "keep_tokens": 99}},
    {"candidates": ["cat, 1girl ||| a,b,,c,d ||| best, , last"],
     "options": {"shuffle_caption": True, "keep_tokens_separator": "|||", "keep_tokens": 3, "caption_tag_dropout_rate": 0.5}},
    {"candidates": ["cat ||| a,b,c,d"], "options": {"caption_tag_dropout_rate": 0.3, "keep_tokens_separator": "|||"}},
    {"candidates": ["a;;;b|c|d;;;e"],
     "options": {"shuffle_caption": True, "caption_separator": "|", "secondary_separator": ";;;"}},
    {"candidates": [""], "options": {"shuffle_caption": True, "caption_suffix": "end"}},
    {"candidates": ["{a|b|} and {c} {{x|y}} {} {{{d|e}}} {f"], "options": {"enable_wildcard": True}},
    {"candidates": ["{{{{|}}}} }{g|h}{i{j|k}"], "options": {"enable_wildcard": True, "caption_dropout_rate": 0.1}},
    {"candidates": [TAGS], "options": {"caption_dropout_rate": 0.25}},
    {"candidates": [TAGS], "options": {"caption_dropout_every_n_epochs": 3, "caption_suffix": "in 4k"}},
    {"candidates": [TAGS], "options": {"caption_tag_dropout_rate": 1, "keep_tokens": 1}},
]
BIASES = [
    {},
    {"min_timestep": 200, "max_timestep": 300},
    {"timestep_bias_strategy": "earlier", "timestep_bias_multiplier": 3.0},
    {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 0.2, "timestep_bias_portion": 0.37},
    {"timestep_bias_strategy": "later", "timestep_bias_multiplier": 2.0, "timestep_bias_portion": 0.0},
    {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 10.0, "timestep_bias_begin": 100, "timestep_bias_end": 250},
    {"timestep_bias_strategy": "range", "timestep_bias_multiplier": 0.1, "timestep_bias_begin": 0, "timestep_bias_end": 900,
     "min_timestep": 500},
]
DRAWS = 20_000
MULTIRES_NOISE = [{"iterations": iterations, "discount": discount, "seed": 2**40 + 1, "slot": slot, "class_image": slot % 2 == 1, "shape": shape}
                  for iterations, discount, slot, shape in
                  [(1, 0.3, 0, (4, 8, 8)), (6, 0.3, 1, (4, 64, 64)), (10, 0.8, 2, (4, 96, 40)), (32, 1.0, 2**33 + 1, (3, 7, 5)), (6, 0.5, 4, (4, 1, 6))]]


def ask(captions=(), timesteps=(), multires_noise=()):
    asked = json.dumps({"captions": list(captions), "timesteps": list(timesteps), "multires_noise": list(multires_noise)})
    return json.loads(subprocess.run([PROBE], input=asked, capture_output=True, text=True, check=True).stdout)


@pytest.fixture(scope="module")
def drawn():
    slots = [[s, s // 7] for s in range(100)] + [[2**40 + s, 2**38] for s in range(20)]
    return ask(captions=[{**case, "seed": seed, "slots": slots} for case in CAPTIONS for seed in (7, 2**40 + 1)],
               timesteps=[{"options": {"num_train_timesteps": 1000, **bias}, "seed": 5, "first_slot": 2**33, "count": DRAWS}
                          for bias in BIASES]), slots


def test_captions_are_equal(drawn):
    answers, slots = drawn
    cases = [(case, seed) for case in CAPTIONS for seed in (7, 2**40 + 1)]
    for (case, seed), texts in zip(cases, answers["captions"], strict=True):
        expected = [reference.caption(case["candidates"], case["options"], seed, slot, epoch) for slot, epoch in slots]
        assert texts == expected, case


def test_the_captions_vary_where_they_should(drawn):
    found = {json.dumps(case): set(texts) for case, texts in zip(CAPTIONS, drawn[0]["captions"][::2], strict=True)}
    varied = [len(texts) > 1 for texts in found.values()]
    assert varied == [False, True, True, True, False, True, True, True, False, True, True, True, True, False]


def test_timesteps_are_equal(drawn):
    for bias, timesteps in zip(BIASES, drawn[0]["timesteps"], strict=True):
        expected = [reference.timestep(bias, 1000, 5, 2**33 + i) for i in range(2000)]
        assert timesteps[:2000] == expected, bias


def generate_timestep_weights(args, num_timesteps):
    """The formula of the script, in torch as it has it."""
    weights = torch.ones(num_timesteps)
    biased = int(args.timestep_bias_portion * num_timesteps)
    indices = {"later": slice(-biased, None), "earlier": slice(0, biased),
               "range": slice(args.timestep_bias_begin, args.timestep_bias_end)}.get(args.timestep_bias_strategy)
    if indices is not None:
        weights[indices] *= args.timestep_bias_multiplier
        weights /= weights.sum()
    return weights / weights.sum()


def test_timesteps_are_distributed_as_the_script_would_draw_them(drawn):
    for bias, timesteps in zip(BIASES, drawn[0]["timesteps"], strict=True):
        args = Namespace(**{"timestep_bias_strategy": "none", "timestep_bias_multiplier": 1.0, "timestep_bias_begin": 0,
                            "timestep_bias_end": 1000, "timestep_bias_portion": 0.25, **bias})
        weights = generate_timestep_weights(args, 1000).double()
        weights[:bias.get("min_timestep", 0)] = 0
        weights[bias.get("max_timestep", 1000):] = 0
        expected = (weights / weights.sum()).view(50, 20).sum(1) * DRAWS
        counts = torch.bincount(torch.tensor(timesteps), minlength=1000).view(50, 20).sum(1).double()
        assert counts[expected == 0].sum() == 0
        bins = expected > 0
        chi_square = ((counts[bins] - expected[bins]) ** 2 / expected[bins]).sum().item()
        freedom = int(bins.sum()) - 1
        assert chi_square < freedom + 6 * (2 * freedom) ** 0.5 + 12, (bias, chi_square, freedom)


def test_multires_noise_is_that_of_the_formula():
    for case, found in zip(MULTIRES_NOISE, ask(multires_noise=MULTIRES_NOISE)["multires_noise"], strict=True):
        shift = philox.CLASS_IMAGE if case["class_image"] else 0
        plain = torch.from_numpy(philox.normal(case["seed"], case["slot"], philox.NOISE + shift, case["shape"]))
        expected = reference.multires_noise(plain, case["iterations"], case["discount"], case["seed"], case["slot"], shift)
        error = ((torch.tensor(found).view(case["shape"]) - expected).norm() / expected.norm()).item()
        assert error <= 1e-6, (case, error)
        assert not torch.allclose(expected, plain, atol=0.1), case
