"""learning_rate() against torch's LambdaLR over diffusers' get_scheduler, and transformers' for what that hasn't: equal in every bit."""

import itertools
import os
import random
import subprocess
import warnings

import pytest
import torch
from diffusers.optimization import get_scheduler
from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "lr_scheduler_probe")
NAMES = ["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"]
OF_TRANSFORMERS = ["cosine_with_min_lr", "warmup_stable_decay"]


def expected(name, base, warmup, total, cycles, power, updates, min_lr_ratio=0.0, decay=0):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=base)
    if name == "cosine_with_min_lr":
        scheduler = get_cosine_with_min_lr_schedule_with_warmup(optimizer, warmup, total, min_lr_rate=min_lr_ratio)
    elif name == "warmup_stable_decay":
        scheduler = get_wsd_schedule(optimizer, warmup, decay, num_stable_steps=total - warmup - decay, min_lr_ratio=min_lr_ratio)
    else:
        scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total, num_cycles=cycles, power=power)
    rates = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the scheduler steps without its optimizer here
        for _ in range(updates):
            rates.append(optimizer.param_groups[0]["lr"])
            scheduler.step()
    return rates


def settings(name):
    grid = itertools.product([1e-4, 3.3e-5, 1.0], [0, 1, 10, 100], [1, 7, 150], [1, 2, 3], [1.0, 2.0, 0.5])
    cases = [(base, w, t, c, p, t + 20) for base, w, t, c, p in grid]
    generator = random.Random(1337)
    for _ in range(40):
        total = generator.randint(2, 400)
        cases.append((generator.uniform(2e-7, 1e-2), generator.randint(0, total - 1), total, generator.randint(1, 9),
                      generator.uniform(0.1, 4.0), total + 30))
    if name == "polynomial":  # a run that is all warmup divides by zero in diffusers
        cases = [case for case in cases if case[1] != case[2]]
    if name not in ("cosine_with_restarts", "polynomial"):  # these ignore cycles and power
        cases = list({case[:3]: case for case in cases}.values())
    return cases


@pytest.mark.parametrize("name", NAMES)
def test_every_rate_is_the_same_double(name):
    cases = settings(name)
    compare(name, cases)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_every_rate_is_the_same_double_as_in_transformers(name):
    generator = random.Random(7)
    cases = []
    for base, ratio in itertools.product([1e-4, 3.3e-5, 1.0], [0.0, 0.1, 0.33, 0.999]):
        for _ in range(20):
            total = generator.randint(1, 300)
            decay = generator.randint(1, total)
            cases.append((base, generator.randint(0, total - decay), total, 1, 1.0, total + 20, ratio, decay))
    compare(name, cases)


def compare(name, cases):
    cases = [(*case, 0.0, 0)[:8] for case in cases]
    lines = "".join(f"{name} {b!r} {w} {t} {c} {p!r} {ratio!r} {decay} {n}\n" for b, w, t, c, p, n, ratio, decay in cases)
    output = subprocess.run([PROBE], input=lines, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(output) == len(cases)
    compared = 0
    for case, line in zip(cases, output):
        got = [float.fromhex(word) for word in line.split()]
        want = expected(name, *case)
        assert got == want, (name, case)
        compared += len(got)
    print(f"{name}: {compared} rates of {len(cases)} settings equal")
    assert compared > 1000
