"""Validation pictures: there when the recipe says, the same on any number of ranks, and nothing to the training."""

import os
import signal
import subprocess
import time

import numpy
import pytest
from lorashard_runs import LORASHARD, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

PROMPTS = ["a picture that is red", "a picture that is blue & \"quoted\" <b>"]
VALIDATION = {
    "validation__validation_prompt": PROMPTS, "validation__num_validation_images": 3, "validation__validation_steps": 2,
    "validation__num_inference_steps": 3, "validation__at_start": True,
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("validation")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    settings = {"train__max_train_steps": 5, **VALIDATION, **overrides}
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **settings)


def samples(folder):
    """Every picture's bytes by its name."""
    root = folder / "samples"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def alone(work):
    lorashard("train", recipe(work, "alone"))
    return work / "alone"


def test_pictures_come_when_the_recipe_says_with_their_prompts(alone):
    names = [f"step-{step:06}" for step in (0, 2, 4, 5)]
    found = samples(alone)
    assert sorted(found) == sorted([f"{name}.png" for name in names] +
                                   [f"{name}/prompt-{p}-{i}.png" for name in names for p in (0, 1) for i in (0, 1, 2)])
    assert not list(alone.rglob("*.tmp*"))
    for prompt in (0, 1):
        with Image.open(alone / "samples" / "step-000004" / f"prompt-{prompt}-2.png") as image:
            assert image.size == (64, 64)
            text = image.text["parameters"]
        assert text.splitlines()[0] == PROMPTS[prompt]
        assert "alone step 4" in text and "Picture: 2" in text
    # The adapter changes what is drawn from the same noise, and the noise differs by picture.
    assert len({found[f"{name}/prompt-{p}-{i}.png"] for name in names[1:] for p in (0, 1) for i in (0, 1, 2)}) == 18

    events = EventAccumulator(str(alone / "logs"), size_guidance={"images": 0})
    events.Reload()
    assert [image.step for image in events.Images("validation")] == [0, 2, 4, 5]
    for image in events.Images("validation"):
        assert image.encoded_image_string == found[f"step-{image.step:06}.png"]
        with Image.open(alone / "samples" / f"step-{image.step:06}.png") as sheet:
            assert sheet.size == (image.width, image.height)
    card = (alone / "README.md").read_text()
    assert "![samples](samples/step-000005.png)" in card and f"> {PROMPTS[0]}" in card


def test_nothing_of_the_training_changes(work, alone):
    lorashard("train", recipe(work, "without", validation__validation_prompt=[]))
    assert not (work / "without" / "samples").exists()
    assert adapter_hash(work / "without") == adapter_hash(alone)
    assert [line["loss"] for line in metrics(work / "without")] == [line["loss"] for line in metrics(alone)]


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_rank_count_makes_the_same_pictures(work, alone, ranks):
    # The sheet names the run: the same name in another folder.
    (work / f"ranks{ranks}").mkdir()
    path = write_recipe(work / f"ranks{ranks}.toml", work / "base", work / "pack", work / f"ranks{ranks}" / "alone",
                        train__max_train_steps=5, **VALIDATION)
    lorashard("launch", path, "--ranks", ranks)
    assert adapter_hash(work / f"ranks{ranks}" / "alone") == adapter_hash(alone)
    assert samples(work / f"ranks{ranks}" / "alone") == samples(alone)


def test_a_finished_run_started_again_makes_none_again(alone):
    before = {path: path.stat().st_mtime_ns for path in (alone / "samples").rglob("*.png")}
    lorashard("train", alone.parent / "alone.toml")
    assert {path: path.stat().st_mtime_ns for path in (alone / "samples").rglob("*.png")} == before
    # Another prompt is another sheet.
    lorashard("train", alone.parent / "alone.toml", "--set", "validation.validation_prompt=a house")
    sheet = alone / "samples" / "step-000005.png"
    assert sheet.stat().st_mtime_ns != before[sheet]
    (alone / "samples" / "step-000005" / "prompt-1-0.png").stat()


@pytest.mark.parametrize("ranks", [1, 3])
def test_stopped_while_making_pictures_it_goes_on_where_it_was(work, alone, ranks):
    name = f"stopped{ranks}"
    slow = {"validation__num_inference_steps": 400, "validation__at_start": False, "checkpoint__checkpointing_steps": 100}
    path = recipe(work, name, **slow)
    run = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", str(ranks)], stderr=subprocess.PIPE, text=True,
                           start_new_session=True)
    while not (work / name / "metrics.jsonl").exists() or len(metrics_text(work / name)) < 2:
        assert run.poll() is None, run.stderr.read()
        time.sleep(0.02)
    time.sleep(1)  # into the first pictures, which take far longer
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=300)
    assert run.returncode == 75, errors
    assert (work / name / "checkpoint-2").is_dir(), os.listdir(work / name)
    assert not (work / name / "samples" / "step-000002.png").exists()

    path = recipe(work, name, **{**slow, "validation__num_inference_steps": 3})
    lorashard("launch", path, "--ranks", ranks)
    assert sorted(p.name for p in (work / name / "samples").glob("*.png")) == [f"step-{k:06}.png" for k in (2, 4, 5)]
    assert adapter_hash(work / name) == adapter_hash(alone)


def metrics_text(folder):
    with open(folder / "metrics.jsonl", encoding="utf-8") as file:
        return file.read().splitlines()


@pytest.mark.parametrize("ema", [False, True])
def test_the_last_pictures_are_those_of_the_exported_adapter(work, tmp_path, ema):
    name = f"exported-ema-{ema}"
    lorashard("train", recipe(work, name, ema__use_ema=ema, lora__lora_alpha=64, optimizer__learning_rate=1e-2,
                              validation__num_validation_images=1, validation__validation_prompt=PROMPTS[0]))

    def generated(*more):
        lorashard("generate", "--base", work / "base", "--prompt", PROMPTS[0], "--seed", 7, "--num-inference-steps", 3,
                  "--threads", 1, "--out", tmp_path / "a.png", *more)
        return pixels(tmp_path / "a.png")

    shown = pixels(work / name / "samples" / "step-000005" / "prompt-0-0.png")
    # The adapter lives beside the weights in training and is added to them here: roundings differ.
    assert numpy.abs(shown - generated("--lora", work / name)).max() <= 2
    assert numpy.abs(shown - generated()).max() > 10
    assert (pixels(work / name / "samples" / "step-000000" / "prompt-0-0.png") == generated()).all()


def pixels(path):
    with Image.open(path) as image:
        return numpy.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize("overrides,words", [
    ({"validation__validation_epochs": 1}, "exclude each other"),
    ({"validation__scheduler": "ddim", "validation__use_karras_sigmas": True}, "has no meaning for the scheduler"),
    ({"validation__height": 100}, "height 100 is not a multiple of 64"),
    ({"validation__scheduler": "heun"}, "one of \"dpmsolver++\""),
    ({"validation__validation_prompt": [""]}, "none empty"),
])
def test_refuses_before_the_first_step(work, overrides, words):
    done = lorashard("train", recipe(work, "refused", **overrides), code=2)
    assert words in done.stderr
    assert not (work / "refused" / "metrics.jsonl").exists()


def test_epochs_count_images(work):
    # 12 pictures, 6 a step: an epoch is two steps.
    lorashard("train", recipe(work, "epochs", validation__validation_steps=None, validation__validation_epochs=1,
                              validation__at_start=False, validation__at_end=False, validation__num_validation_images=1))
    assert sorted(p.name for p in (work / "epochs" / "samples").glob("*.png")) == ["step-000002.png", "step-000004.png"]
