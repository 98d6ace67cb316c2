"""Resuming from every rank count on every other: at each start another step, mid-epoch, at an epoch's end, with shares that don't divide."""

import os
import signal

import pytest

from fault_runs import LONG, Run, by_launch, make_inputs
from lorashard_runs import adapter_hash, lorashard, metrics, write_recipe

# Every step from one rank count to another, each once: 17 starts, 16 resumes.
RANKS = [1, 1, 2, 1, 3, 1, 4, 2, 2, 3, 2, 4, 3, 3, 4, 4, 1]


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("resume"))


def recipe(work, name, steps, **overrides):
    # 12 pictures, 5 a step: epochs end within steps 3, 5, 8, 10, 12 (there exactly with step 12) and no rank count divides a step.
    values = {"train__total_batch_size": 5, "train__max_train_steps": steps, "checkpoint__checkpointing_steps": 1}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**values, **overrides})


def require_same_end(one, other, step):
    """The adapter, and every tensor and counter of the last checkpoint. (The recipe inside it names its own output_dir.)"""
    assert adapter_hash(one) == adapter_hash(other)
    names = sorted(os.listdir(one / f"checkpoint-{step}"))
    assert names == sorted(os.listdir(other / f"checkpoint-{step}")) and len(names) >= 3
    assert tensors(one / f"checkpoint-{step}") == tensors(other / f"checkpoint-{step}")


def tensors(folder):
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", "np") as file:
        counters = {name: value for name, value in file.metadata().items() if value.lstrip("-").isdigit()}
        assert "global_step" in counters
        return counters, {name: file.get_tensor(name).tobytes() for name in file.keys()}


def test_the_ranks_cover_every_change_of_rank_count():
    assert {(a, b) for a, b in zip(RANKS, RANKS[1:])} == {(a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4)}


def test_a_run_of_single_steps_on_ever_other_ranks_equals_one_run(work):
    last = len(RANKS)
    lorashard("train", recipe(work, "at-once", last))
    for step, ranks in enumerate(RANKS, start=1):
        said = lorashard("launch", recipe(work, "stepwise", step), "--ranks", ranks).stderr
        assert step == 1 or f"at step {step - 1}" in said, said
    require_same_end(work / "at-once", work / "stepwise", last)
    keep = ("global_step", "loss", "lr", "grad_norm", "epoch")
    once, steps = ([{key: line[key] for key in keep} for line in metrics(work / name)] for name in ("at-once", "stepwise"))
    assert once == steps


def test_two_halves_equal_one_run(work):
    steps = 40 if LONG else 12
    lorashard("train", recipe(work, "whole", steps))
    lorashard("launch", recipe(work, "halves", steps // 2), "--ranks", 2)
    lorashard("launch", recipe(work, "halves", steps), "--ranks", 3)
    require_same_end(work / "whole", work / "halves", steps)


def test_stopped_in_the_middle_of_a_step_the_step_is_done_again_or_finished_never_halved(work):
    """TERM while micro-batches of a step are under way: the step ends, and the next start begins with the one after."""
    lasting = {"train__total_batch_size": 16, "checkpoint__checkpointing_steps": 1000}
    path = recipe(work, "middle", 1_000_000, **lasting)
    run = Run(path, by_launch(path, 2))
    run.wait_for_step(2)
    run.process.send_signal(signal.SIGTERM)
    code, said = run.end()
    assert code == 75, said
    last = run.steps() + 2
    lorashard("launch", recipe(work, "middle", last, **lasting), "--ranks", 3)
    lorashard("train", recipe(work, "no-middle", last, **lasting))
    assert adapter_hash(work / "middle") == adapter_hash(work / "no-middle")
