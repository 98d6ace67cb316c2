"""The arithmetic of a run on two ranks, against diffusers, peft and torch: SD 1.5's shape (epsilon), SD 2.1's (velocity) and
SDXL's (two text encoders, time ids, three ranks)."""

import os
import sys

import pytest

from lorashard_runs import REPO, lorashard, make_base, make_pack, make_pictures, write_recipe

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Replay  # noqa: E402

STEPS = 10
LORA = {
    "tiny-sd15": {},
    "tiny-sd21": {"lora__rank": 8, "lora__lora_alpha": 4.0},
    "tiny-sdxl": {},
}
RANKS = {"tiny-sd15": 2, "tiny-sd21": 2, "tiny-sdxl": 3}


@pytest.mark.parametrize("preset", LORA)
def test_every_step_equals_diffusers(tmp_path, preset):
    make_base(tmp_path / "base", preset)
    make_pack(tmp_path / "pack", make_pictures(tmp_path / "pictures"))
    # Four micro-batches of two pictures a step: two on each of two ranks; 2, 1 and 1 on three. The limit of the norm is low enough to clip.
    recipe = write_recipe(
        tmp_path / "recipe.toml", tmp_path / "base", tmp_path / "pack", tmp_path / "run", train__train_batch_size=2,
        train__total_batch_size=8, train__max_train_steps=STEPS, train__max_grad_norm=0.02, debug__trace_steps=STEPS,
        lr_scheduler__lr_scheduler="cosine", lr_scheduler__lr_warmup_steps=3, checkpoint__checkpointing_steps=100,
        **LORA[preset])
    lorashard("launch", recipe, "--ranks", RANKS[preset])

    replay = Replay(tmp_path / "run")
    errors = replay.replay()
    print(f"\n{preset}, {len(replay.steps)} steps, {len(replay.keys)} LoRA tensors\n{errors.table()}")
    assert replay.steps == list(range(STEPS))
    assert replay.scheduler.config.prediction_type == ("v_prediction" if preset == "tiny-sd21" else "epsilon")
    assert not errors.outside(), errors.table()
    norms = [replay.trace[f"step{step}/grad_norm"].item() for step in replay.steps]
    assert min(norms) > 0.02, f"the gradient was not clipped: {norms}"
