"""Each optimizer, with its groups and the average: the same bytes on other ranks and through a restart, the updates of its reference."""

import os
import sys

import pytest
import tomllib
from safetensors.torch import load_file

from lorashard_runs import REPO, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Errors  # noqa: E402
from replay_updates import ReplayUpdates  # noqa: E402

STEPS = 5
OPTIMIZERS = {
    "adamw": {"optimizer__loraplus_lr_ratio": 8.0, "optimizer__lr_pattern": {"attn2": 5e-4, "up_blocks.1": 2e-3},
              "lr_scheduler__lr_scheduler": "constant_with_warmup", "lr_scheduler__lr_warmup_steps": 2, "ema__use_ema": True},
    "adamw8bit": {"lora__rank": 128, "optimizer__adam_weight_decay": 0.1},  # of 4096 elements and more
    "prodigy": {"optimizer__learning_rate": 1.0, "optimizer__prodigy_d0": 1e-4, "ema__use_ema": True, "ema__use_ema_warmup": True,
                "ema__ema_update_after_step": 1},
    "adafactor": {"optimizer__adafactor_scale_parameter": True, "optimizer__learning_rate": 1e-2},
    "lion": {"optimizer__learning_rate": 1e-4},
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("optimizers")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def recipe(work, name, optimizer, **more):
    values = {"train__total_batch_size": 3, "train__max_train_steps": STEPS, "train__max_grad_norm": 0.05,
              "optimizer__optimizer": optimizer, "checkpoint__checkpointing_steps": 100, **OPTIMIZERS[optimizer], **more}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **values)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_same_bytes_on_other_ranks_and_the_updates_of_the_reference(work, optimizer):
    whole, parts = work / optimizer, work / f"{optimizer}-parts"
    lorashard("train", recipe(work, whole.name, optimizer, debug__trace_steps=STEPS))
    path = recipe(work, parts.name, optimizer)
    lorashard("launch", path, "--ranks", 2, "--set", "train.max_train_steps=2")
    assert adapter_hash(parts) != adapter_hash(whole)
    lorashard("launch", path, "--ranks", 3)
    assert adapter_hash(parts) == adapter_hash(whole)

    # A moment half way between two bytes may become either.
    errors = Errors({"grad_norm": 1e-5, "lr": 0, "weights": 1e-3 if optimizer == "adamw8bit" else 1e-6})
    trace = load_file(whole / "trace.safetensors")
    keys = [name.removeprefix("init/") for name in trace if name.startswith("init/")]
    resolved = tomllib.loads((whole / "recipe.toml").read_text(encoding="utf-8"))
    lines = {line["global_step"]: line for line in metrics(whole)}
    updates = ReplayUpdates(resolved, trace, lines, sorted(keys), whole)
    updates.replay(range(STEPS), errors)
    if updates.ema:
        updates.compare_average(dict.fromkeys(keys, 1.0), errors)
    print(f"\n{optimizer}: {[group['name'] for group in updates.groups]}\n{errors.table()}")
    assert not errors.outside(), errors.table()


def test_the_checkpoint_has_the_state_by_name_and_refuses_another_optimizers(work):
    path = recipe(work, "names", "prodigy", train__max_train_steps=1)
    lorashard("train", path)
    state = load_file(work / "names" / "checkpoint-1" / "state.safetensors")
    assert sorted(state) == ["ema/parameters", *(f"optimizer/{name}" for name in (
        "d", "d_max", "d_numerator", "exp_avg", "exp_avg_sq", "k", "p0", "s")), "parameters"]
    said = lorashard("train", path, "--set", "optimizer.optimizer=lion", "--set", "train.max_train_steps=2", code=2).stderr
    assert "optimizer.prodigy_d0" in said and "only with optimizer = \"prodigy\"" in said
    said = lorashard("train", recipe(work, "names", "lion", train__max_train_steps=2), code=2).stderr
    assert "'optimizer.optimizer' was \"prodigy\" there" in said or "'ema.use_ema' was true there" in said


def test_the_alias_of_the_scripts_is_8_bit_adamw(work):
    lorashard("train", recipe(work, "alias", "adamw", train__max_train_steps=1, optimizer__use_8bit_adam=True))
    resolved = tomllib.loads((work / "alias" / "recipe.toml").read_text(encoding="utf-8"))["optimizer"]
    assert resolved["optimizer"] == "adamw8bit" and not resolved["use_8bit_adam"]
    assert "optimizer/absmax1" in load_file(work / "alias" / "checkpoint-1" / "state.safetensors")


@pytest.mark.parametrize("name", ["cosine_with_min_lr", "warmup_stable_decay"])
def test_schedules_of_transformers_reach_the_updates(work, name):
    import torch
    from transformers.optimization import get_cosine_with_min_lr_schedule_with_warmup, get_wsd_schedule

    own = {"lr_scheduler__lr_scheduler": name, "lr_scheduler__lr_warmup_steps": 2, "lr_scheduler__lr_scheduler_min_lr_ratio": 0.1}
    if name == "warmup_stable_decay":
        own["lr_scheduler__lr_decay_steps"] = 2
    lorashard("train", recipe(work, name, "lion", **own))
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1e-4)
    schedule = (get_wsd_schedule(optimizer, 2, 2, num_stable_steps=STEPS - 4, min_lr_ratio=0.1) if name == "warmup_stable_decay" else
                get_cosine_with_min_lr_schedule_with_warmup(optimizer, 2, STEPS, min_lr_rate=0.1))
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [line["lr"] for line in metrics(work / name)] == expected
