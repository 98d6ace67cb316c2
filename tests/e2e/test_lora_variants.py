"""DoRA, dropout, convolutions and ranks by layer in whole runs: the same bits on any number of ranks and through a stop, the files
they write in every layout, and runs that start from such a file."""

import json
import os
import shutil
import sys

import pytest
from safetensors.torch import load_file

from lorashard_runs import REPO, adapter_hash, lorashard, make_base, make_pack, make_pictures, write_recipe

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Replay  # noqa: E402

PATTERNS = ("--set", 'lora.rank_pattern={"attn2.to_k"=8, "conv1"=2}', "--set", 'lora.alpha_pattern={"attn1.to_q"=2.0}')
VARIANT = {"lora__use_dora": True, "lora__lora_dropout": 0.2, "lora__target_modules": ["attention", "mid_block.resnets.*.conv1"],
           "lora__init": "kaiming", "output__formats": ["diffusers", "kohya", "peft"], "train__max_train_steps": 4,
           "checkpoint__checkpointing_steps": 2}

MAX_NORM = 0.02


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("variants")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**VARIANT, **overrides})


@pytest.fixture(scope="module")
def undisturbed(work):
    lorashard("train", recipe(work, "undisturbed"), *PATTERNS)
    return work / "undisturbed"


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_rank_count_writes_the_same_bytes(work, undisturbed, ranks):
    lorashard("launch", recipe(work, f"ranks{ranks}"), "--ranks", ranks, *PATTERNS)
    assert adapter_hash(work / f"ranks{ranks}") == adapter_hash(undisturbed)


def test_going_on_from_a_checkpoint_writes_the_same_bytes(work, undisturbed):
    path = recipe(work, "stopped")
    lorashard("train", path, *PATTERNS, "--set", "train.max_train_steps=2")
    lorashard("launch", path, "--ranks", 2, *PATTERNS)
    assert adapter_hash(work / "stopped") == adapter_hash(undisturbed)


def test_recomputing_draws_the_same_masks(work, undisturbed):
    lorashard("train", recipe(work, "recomputed", train__gradient_checkpointing=True), *PATTERNS)
    assert adapter_hash(work / "recomputed") == adapter_hash(undisturbed)


@pytest.mark.parametrize("variant", ["dora", "dora and dropout", "rslora and convolutions", "rank dropout and norms"])
def test_every_step_equals_peft(work, variant):
    options = {
        "dora": {"lora__use_dora": True},
        "dora and dropout": {"lora__use_dora": True, "lora__lora_dropout": 0.2, "lora__init": "kaiming"},
        "rslora and convolutions": {"lora__use_dora": False, "lora__use_rslora": True, "lora__target_modules": ["attention+ff", "conv1"]},
        "rank dropout and norms": {"lora__use_dora": False, "lora__rank_dropout": 0.3, "lora__module_dropout": 0.2,
                                   "lora__scale_weight_norms": MAX_NORM, "train__gradient_checkpointing": True},
    }[variant]
    name = variant.replace(" ", "-")
    settings = {"lora__use_dora": False, "lora__lora_dropout": 0.0, "lora__init": "gaussian", "lora__target_modules": ["attention", "conv1"]}
    lorashard("launch", recipe(work, name, **{**settings, **options}, debug__trace_steps=4, train__train_batch_size=2), "--ranks", 2, *PATTERNS)
    replay = Replay(work / name)
    errors = replay.replay()
    print(f"\n{variant}\n{errors.table()}")
    assert not errors.outside(), errors.table()
    if "lora__scale_weight_norms" in options:
        norms = [norm_of_change(replay, key) for key in replay.keys if key.endswith("lora_A.weight")]
        assert max(norms) <= MAX_NORM * (1 + 1e-5) and sum(norm >= MAX_NORM * (1 - 1e-5) for norm in norms) > len(norms) / 4, norms


def norm_of_change(replay, key):
    down, up = (replay.trace[f"step{replay.steps[-1]}/param/{name}"].flatten(1) for name in (key, key.replace("lora_A", "lora_B")))
    return (up @ down).norm().item() * replay.scales[key]


def test_dropout_and_dora_change_the_adapter(work, undisturbed):
    lorashard("train", recipe(work, "no-dropout", lora__lora_dropout=0.0), *PATTERNS)
    assert adapter_hash(work / "no-dropout") != adapter_hash(undisturbed)
    state = load_file(undisturbed / "pytorch_lora_weights.safetensors")
    ranks = {key: value.shape[0] for key, value in state.items() if key.endswith("lora_A.weight")}
    assert all(rank == (8 if ".attn2.to_k." in key else 2 if ".conv1." in key else 4) for key, rank in ranks.items())
    assert sum(key.endswith("lora_magnitude_vector") for key in state) == len(ranks)


def test_every_layout_holds_the_same_adapter(work, undisturbed):
    expected = load_file(undisturbed / "pytorch_lora_weights.safetensors")
    for layout in ("kohya_lora_weights.safetensors", "peft"):
        out = work / f"from-{layout}"
        lorashard("convert", undisturbed / layout, out / "pytorch_lora_weights.safetensors", "--to", "diffusers", "--base", work / "base")
        found = load_file(out / "pytorch_lora_weights.safetensors")
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == value.shape
            assert (found[key] - value).norm() <= 1e-6 * value.norm(), key
    kinds = json.loads(lorashard("inspect", undisturbed / "kohya_lora_weights.safetensors", "--json").stdout)
    assert kinds["kinds"] == {"dora lora": len(expected) // 3}


def test_a_run_starts_from_an_adapter(work, undisturbed):
    for start in ("kohya_lora_weights.safetensors", "peft"):
        path = recipe(work, f"from-{start}-again", lora__lora_weights=str(undisturbed / start), debug__trace_steps=1, train__max_train_steps=1)
        lorashard("train", path, *PATTERNS)
        trace = load_file(work / f"from-{start}-again" / "trace.safetensors")
        for key, value in load_file(undisturbed / "pytorch_lora_weights.safetensors").items():
            # The trace has the unfolded up.
            first = trace["init/" + key].reshape(value.shape)
            if key.endswith("lora_B.weight") and value.any():
                first = first * (value.norm() / first.norm())
            assert (first - value).norm() <= 1e-6 * value.norm(), key


def test_another_rank_is_refused_with_a_hint(work, undisturbed):
    path = recipe(work, "other-rank", lora__lora_weights=str(undisturbed / "kohya_lora_weights.safetensors"))
    said = lorashard("train", path, code=2).stderr
    assert "has rank" in said and "rank_pattern" in said


def test_a_resume_wants_the_same_adapter_but_not_the_file(work, undisturbed):
    start = work / "start.safetensors"
    shutil.copy(undisturbed / "kohya_lora_weights.safetensors", start)
    path = recipe(work, "started", lora__lora_weights=str(start), train__max_train_steps=2, lora__lora_dropout=0.0)
    lorashard("train", path, *PATTERNS)
    start.unlink()
    lorashard("train", path, *PATTERNS, "--set", "train.max_train_steps=3")
    shutil.copy(undisturbed / "pytorch_lora_weights.safetensors", start)
    said = lorashard("train", path, *PATTERNS, "--set", "train.max_train_steps=4", code=2).stderr
    assert "lora.lora_weights_sha256" in said
