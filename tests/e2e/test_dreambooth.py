"""DreamBooth: its arithmetic against diffusers, peft and torch, its promise of equal bits, and what it says to people."""

import os
import subprocess
import sys
import time

import pytest
import torch
from transformers import CLIPTokenizer

from lorashard_runs import (LORASHARD, REPO, adapter_hash, kill_ranks, lorashard, make_base, make_folder_of_stamps, make_pack, metrics,
                            write_dreambooth_recipe)

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Replay  # noqa: E402

PRIOR = {"dreambooth__with_prior_preservation": True, "dreambooth__class_prompt": "a photo of a bird",
         "dreambooth__num_class_images": 7}
TEXT_ENCODER = {"lora__train_text_encoder": True, "lora__lora_alpha": 8.0}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Five pictures of fish, nine of birds (one pack and one folder of them), and a small base."""
    folder = tmp_path_factory.mktemp("dreambooth")
    make_folder_of_stamps(folder / "fish", "fish", 5)
    make_folder_of_stamps(folder / "birds", "birds", 9)
    make_base(folder / "base")
    make_base(folder / "base-sdxl", "tiny-sdxl")
    return folder


def recipe(work, name, base="base", **overrides):
    values = {"data__random_flip": False}
    if overrides.get("dreambooth__with_prior_preservation"):
        values["dreambooth__class_data_dir"] = str(work / "birds")
    return write_dreambooth_recipe(work / f"{name}.toml", work / base, work / "fish", work / name, **{**values, **overrides})


@pytest.mark.parametrize("name, options", {
    "prior": {**PRIOR, "dreambooth__prior_loss_weight": 0.5},
    "text-encoder": {**TEXT_ENCODER, "lora__text_encoder_target_modules": ["q_proj", "v_proj", "out_proj"]},
    "prior-and-text-encoder": {**PRIOR, **TEXT_ENCODER, "optimizer__text_encoder_lr": 5e-4, "optimizer__adam_weight_decay_text_encoder": 1e-3},
    "text-encoder-with-dora-and-dropout": {**TEXT_ENCODER, "lora__use_dora": True, "lora__lora_dropout": 0.2},
    "sdxl-prior-and-text-encoders": {**PRIOR, **TEXT_ENCODER, "base": "base-sdxl"},
    "sdxl-prior-and-min-snr": {**PRIOR, "base": "base-sdxl", "train__snr_gamma": 5.0},
}.items())
def test_every_step_equals_diffusers(work, name, options):
    steps = 4
    # Three micro-batches of two instance pictures a step, one on each of three ranks.
    lorashard("launch", recipe(work, f"replayed-{name}", train__train_batch_size=2, train__total_batch_size=6,
                               train__max_train_steps=steps, train__max_grad_norm=0.02, debug__trace_steps=steps, **options),
              "--ranks", 3)
    replay = Replay(work / f"replayed-{name}")
    errors = replay.replay()
    print(f"\n{name}, {len(replay.keys)} LoRA tensors\n{errors.table()}")
    assert replay.steps == list(range(steps))
    assert not errors.outside(), errors.table()
    trained = {key.split(".")[0] for key in replay.keys}
    expected = {"unet"} | ({"text_encoder"} if "text-encoder" in name else set()) | ({"text_encoder_2"} if "text-encoders" in name else set())
    assert trained == expected
    rates = {name.rpartition("/")[2]: rate.item() for name, rate in replay.trace.items() if name.startswith("step0/lr/")}
    assert len(rates) == (len(trained) if len(trained) > 1 else 0)
    assert len(set(rates.values())) == (2 if "optimizer__text_encoder_lr" in options else min(len(rates), 1)), rates
    # What the pictures are called: the instance prompt, and behind it the class prompt.
    tokenizer = CLIPTokenizer.from_pretrained(work / "base" / "tokenizer")
    prompts = ["a photo of sks duck"] * 2 + (["a photo of a bird"] * 2 if "prior" in name else [])
    expected = tokenizer(prompts, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    assert torch.equal(replay.trace["step1/micro4/input_ids"], expected)


@pytest.fixture(scope="module")
def undisturbed(work):
    """One process, no mpirun, both packs made by `lorashard pack`: what every other run must equal."""
    make_pack(work / "fish-pack", work / "fish")
    make_pack(work / "birds-pack", work / "birds")
    lorashard("train", recipe(work, "undisturbed", **PRIOR, **TEXT_ENCODER), "--set",
              f"dreambooth.instance_data_dir='{work / 'fish-pack'}'", "--set", f"dreambooth.class_data_dir='{work / 'birds-pack'}'")
    return adapter_hash(work / "undisturbed"), [line["loss"] for line in metrics(work / "undisturbed")]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_rank_count_writes_the_same_bytes(work, undisturbed, ranks):
    lorashard("launch", recipe(work, f"ranks{ranks}", **PRIOR, **TEXT_ENCODER), "--ranks", ranks)
    assert adapter_hash(work / f"ranks{ranks}") == undisturbed[0]
    assert [line["loss"] for line in metrics(work / f"ranks{ranks}")] == undisturbed[1]


def test_killed_and_resumed_on_other_ranks_writes_the_same_bytes(work, undisturbed):
    path = recipe(work, "killed", **PRIOR, **TEXT_ENCODER)
    process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", "2", "--max-restarts", "0"], stderr=subprocess.DEVNULL)
    while not (work / "killed" / "checkpoint-3").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    kill_ranks(path)
    process.wait()
    lorashard("launch", path, "--ranks", 3)
    assert adapter_hash(work / "killed") == undisturbed[0]


def test_caches_change_no_bit(work):
    options = {**PRIOR, "data__center_crop": True, "data__random_flip": True, "train__max_train_steps": 3}
    lorashard("train", recipe(work, "live", **options))
    lorashard("launch", recipe(work, "cached", data__cache_latents=True, data__cache_text_embeddings=True, **options), "--ranks", 2)
    assert adapter_hash(work / "cached") == adapter_hash(work / "live")


def test_other_class_pictures_are_another_run(work, undisturbed):
    path = recipe(work, "other-class", train__max_train_steps=2, **PRIOR)
    lorashard("train", path)
    make_folder_of_stamps(work / "mammals", "mammals", 7)
    make_pack(work / "mammals-pack", work / "mammals")
    said = lorashard("train", path, "--set", f"dreambooth.class_data_dir='{work / 'mammals-pack'}'", code=2).stderr
    assert "has other contents than at the first start" in said


def test_custom_instance_prompts_need_captions(work):
    said = lorashard("train", recipe(work, "no-captions", dreambooth__custom_instance_prompts=True), code=2).stderr
    assert "none of the 5 pictures" in said and "hint:" in said


def test_a_picture_is_trained_with_its_own_caption_or_the_instance_prompt(work):
    make_folder_of_stamps(work / "captioned", "fish", 3)
    names = sorted(os.listdir(work / "captioned"))
    (work / "captioned" / names[1]).with_suffix(".txt").write_text("a sks fish in the sea\n", encoding="utf-8")
    path = recipe(work, "own-captions", train__total_batch_size=3, train__max_train_steps=1, debug__trace_steps=1,
                  dreambooth__custom_instance_prompts=True, dreambooth__instance_data_dir=str(work / "captioned"))
    lorashard("train", path)
    replay = Replay(work / "own-captions")
    tokenizer = CLIPTokenizer.from_pretrained(work / "base" / "tokenizer")
    for m in range(3):
        row = replay.trace[f"step0/micro{m}/sample_ids"].item()
        text = "a sks fish in the sea" if row == 1 else "a photo of sks duck"
        expected = tokenizer([text], padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.equal(replay.trace[f"step0/micro{m}/input_ids"], expected)


@pytest.mark.parametrize("name, base, settings", [
    ("sd15_dreambooth", "base", []),
    ("sd15_dreambooth", "base", ["lora.train_text_encoder=true"]),
    ("sdxl_dreambooth", "base-sdxl", ["model.pretrained_vae_model_name_or_path=''", "train.mixed_precision='bf16'"]),
])
def test_the_recipe_takes_its_first_steps_on_a_small_base(work, tmp_path, name, base, settings):
    settings = [f"output_dir='{tmp_path / 'run'}'", f"model.pretrained_model_name_or_path='{work / base}'",
                f"dreambooth.instance_data_dir='{work / 'fish'}'", "data.resolution=64", "train.max_train_steps=2",
                "validation.num_validation_images=1", "validation.num_inference_steps=2", *settings]
    lorashard("train", os.path.join(REPO, "recipes", f"{name}.toml"), *(word for s in settings for word in ("--set", s)))
    assert [line["lr"] for line in metrics(tmp_path / "run")] == [1e-4, 1e-4]
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert 'instance_prompt: "a photo of sks dog"' in card and "- dreambooth\n" in card
    assert ("- template:sd-lora\n" in card) == (base == "base-sdxl")
