"""The loss on pictures that are held out of training (validation.validation_split): against diffusers and peft, the same number on any
number of ranks, with caches and through a stop."""

import json
import os
import random
import sys

import pytest
import torch
from PIL import Image

from lorashard_runs import REPO, adapter_hash, lorashard, make_base, make_pack, metrics, write_recipe

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
import philox_reference as philox  # noqa: E402
from replay import Replay  # noqa: E402

PICTURES, SPLIT, STEPS = 10, 0.35, 4
OPTIONS = {"validation__validation_split": SPLIT, "validation__validation_steps": 2, "train__max_train_steps": STEPS,
           "train__noise_offset": 0.1, "train__snr_gamma": 5.0, "lora__lora_dropout": 0.2, "data__center_crop": True,
           "checkpoint__checkpointing_steps": 2, "timesteps__min_timestep": 100}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Pictures that are as large as they are trained, so that their pixels are known."""
    folder = tmp_path_factory.mktemp("held-out")
    os.makedirs(folder / "pictures")
    rng = random.Random(3)
    with open(folder / "pictures" / "metadata.jsonl", "w", encoding="utf-8") as table:
        for i in range(PICTURES):
            Image.frombytes("RGB", (64, 64), rng.randbytes(64 * 64 * 3)).save(folder / "pictures" / f"{i}.png")
            table.write(json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}) + "\n")
    make_pack(folder / "pack", folder / "pictures")
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**OPTIONS, **overrides})


def losses(run):
    return {line["global_step"]: line["val_loss"] for line in metrics(run) if "val_loss" in line}


@pytest.fixture(scope="module")
def alone(work):
    lorashard("train", recipe(work, "alone", debug__trace_steps=STEPS))
    return work / "alone"


@torch.no_grad()
def expected_loss(replay, work, step):
    """Mean over the held-out rows and over five timesteps of the error of the adapter after `step` steps."""
    for key, parameter in replay.parameters.items():
        parameter.copy_(replay.trace[f"step{step - 1}/param/{key}"].reshape(parameter.shape))
    for dropout in (module for module in replay.unet.modules() if hasattr(module, "lora_dropout")):
        dropout.lora_dropout["default"] = torch.nn.Identity()
    total = []
    for row in replay.held_out_rows:
        pixels = torch.frombuffer(bytearray(Image.open(work / "pictures" / f"{row}.png").tobytes()), dtype=torch.uint8)
        pixel_values = pixels.view(64, 64, 3).permute(2, 0, 1)[None] / 255 * 2 - 1
        latents = replay.vae.encode(pixel_values).latent_dist.mean * replay.vae.config.scaling_factor
        ids = replay.tokenizer([f"number {row}"], padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
        text = replay.text_encoder(ids)[0]
        for i, t in enumerate((190, 370, 550, 730, 910)):  # the middles of five parts of 100 ... 999
            noise = torch.from_numpy(philox.normal(7, row, philox.HELD_OUT_NOISE + (i << 16), tuple(latents.shape[1:])))[None]
            noisy = replay.scheduler.add_noise(latents, noise, torch.tensor([t]))
            total.append(torch.nn.functional.mse_loss(replay.unet(noisy, t, text).sample, noise).item())
    return sum(total) / len(total)


def test_the_loss_is_that_of_diffusers_and_its_pictures_are_never_trained_on(work, alone):
    replay = Replay(alone)
    errors = replay.replay()
    assert not errors.outside(), errors.table()
    assert replay.held_out_rows == philox.held_out_rows(7, PICTURES, SPLIT) and len(replay.held_out_rows) == 3
    seen = {row for key, value in replay.trace.items() if key.endswith("sample_ids") for row in value.tolist()}
    assert seen == set(range(PICTURES)) - set(replay.held_out_rows)
    found = losses(alone)
    assert sorted(found) == [2, 4]
    for step, loss in found.items():
        assert loss == pytest.approx(expected_loss(replay, work, step), rel=1e-5)
    assert found[2] != found[4]


def test_on_three_ranks_with_caches_and_a_stop_it_is_the_same_number(work, alone):
    path = recipe(work, "three", data__cache_latents=True, data__cache_text_embeddings=True)
    lorashard("launch", path, "--ranks", 3, "--set", "train.max_train_steps=2")
    lorashard("launch", path, "--ranks", 2)
    assert losses(work / "three") == losses(alone)
    assert adapter_hash(work / "three") == adapter_hash(alone)


def test_it_changes_no_bit_of_the_training(work, alone):
    lorashard("train", recipe(work, "rarely", validation__validation_steps=100, validation__at_end=False))
    assert losses(work / "rarely") == {}
    assert adapter_hash(work / "rarely") == adapter_hash(alone)


def test_a_part_that_is_less_than_one_picture_is_refused(work):
    said = lorashard("train", recipe(work, "too-little", validation__validation_split=0.05), code=2).stderr
    assert "'validation.validation_split' = 0.05 of the 10 pictures" in said and "is less than one" in said and "hint:" in said


def test_the_split_is_part_of_what_a_run_is(work, alone):
    said = lorashard("train", recipe(work, "alone", validation__validation_split=0.5, train__max_train_steps=6), code=2).stderr
    assert "validation.validation_split" in said
