"""Aspect-ratio buckets: every step equals diffusers, and the adapter is the same on any ranks, through a kill and with caches."""

import json
import os
import random
import subprocess
import sys
import time

import pytest
from PIL import Image

from lorashard_runs import (LORASHARD, REPO, adapter_hash, kill_ranks, lorashard, make_base, make_pack, metrics, write_dreambooth_recipe,
                            write_recipe)

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Replay  # noqa: E402

# Of the square of 128: 64x192 and 64x256, 128x128, 192x64 and 256x64.
BUCKETS = {"data__resolution": 128, "data__enable_bucket": True, "data__min_bucket_reso": 64, "data__max_bucket_reso": 256}
SIZES = [(64, 190), (70, 200), (66, 210), (128, 120), (190, 64), (180, 66), (200, 70), (210, 68), (200, 66)]  # width x height: 3, 1 and 5


def make_shaped_pictures(folder, sizes, repeats=()):
    """Captioned noise of the given sizes (width, height)."""
    os.makedirs(folder)
    rng = random.Random(2)
    with open(os.path.join(folder, "metadata.jsonl"), "w", encoding="utf-8") as table:
        for i, size in enumerate(sizes):
            Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(os.path.join(folder, f"{i:03d}.png"))
            row = {"file_name": f"{i:03d}.png", "text": f"picture number {i}"}
            table.write(json.dumps(row | ({"times": repeats[i]} if repeats else {})) + "\n")
    return folder


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("buckets")
    make_pack(folder / "pack", make_shaped_pictures(folder / "pictures", SIZES))
    make_pack(folder / "class-pack", make_shaped_pictures(folder / "classes", [(150, 140), (64, 200), (190, 100)]))
    for preset in ("tiny-sd15", "tiny-sdxl"):
        make_base(folder / preset, preset)
    return folder


def recipe(work, name, preset="tiny-sd15", **overrides):
    values = {"train__train_batch_size": 2, "train__total_batch_size": 8, "train__max_train_steps": 4, "checkpoint__checkpointing_steps": 2}
    return write_recipe(work / f"{name}.toml", work / preset, work / "pack", work / name, **{**BUCKETS, **values, **overrides})


def replayed(work, name):
    replay = Replay(work / name)
    errors = replay.replay()
    print(f"\n{name}\n{errors.table()}")
    assert not errors.outside(), errors.table()
    return replay


def shapes(replay):
    return {tuple(tensor.shape[2:]) for key, tensor in replay.trace.items() if key.endswith("/latents")}


def test_every_step_equals_diffusers_and_the_start_says_the_buckets(work):
    """Four micro-batches of several shapes a step, 6 an epoch: sizes of SDXL's time ids, crops and flips among what is compared."""
    said = lorashard("launch", recipe(work, "sdxl", "tiny-sdxl", train__max_train_steps=3, debug__trace_steps=3), "--ranks", 2).stderr
    assert "buckets: 64x192: 3, 128x128: 1, 192x64: 5; 6 micro-batches of 2 an epoch" in said
    assert "1 of 3 buckets have fewer pictures than train_batch_size 2, which repeat inside their micro-batch: 128x128: 1" in said
    replay = replayed(work, "sdxl")
    assert shapes(replay) == {(24, 8), (16, 16), (8, 24)}
    per_step = [{tuple(replay.trace[f"step{k}/micro{m}/latents"].shape[2:]) for m in range(4 * k, 4 * k + 4)} for k in range(3)]
    assert max(map(len, per_step)) > 1, "no step mixes shapes"
    assert metrics(work / "sdxl")[2]["epoch"] == pytest.approx(24 / 12)


def test_prior_preservation_and_captions_by_epoch_equal_diffusers(work):
    path = write_dreambooth_recipe(
        work / "dreambooth.toml", work / "tiny-sd15", work / "pack", work / "dreambooth", dreambooth__custom_instance_prompts=True,
        dreambooth__with_prior_preservation=True, dreambooth__class_data_dir=str(work / "class-pack"), dreambooth__class_prompt="a thing",
        dreambooth__num_class_images=3, captions__caption_dropout_every_n_epochs=2, data__max_train_samples=8, train__train_batch_size=2,
        train__total_batch_size=4, train__max_train_steps=4, debug__trace_steps=4, **BUCKETS)
    lorashard("train", path)
    replay = replayed(work, "dreambooth")
    assert len(shapes(replay)) == 3
    assert {replay.trace[f"step{m // 2}/micro{m}/class_sample_ids"].shape[0] for m in range(8)} == {2}


@pytest.fixture(scope="module")
def undisturbed(work):
    lorashard("train", recipe(work, "undisturbed"))
    return adapter_hash(work / "undisturbed"), [line["loss"] for line in metrics(work / "undisturbed")]


@pytest.mark.parametrize("ranks", [2, 3])
def test_any_rank_count_writes_the_same_bytes(work, undisturbed, ranks):
    lorashard("launch", recipe(work, f"ranks{ranks}"), "--ranks", ranks)
    assert adapter_hash(work / f"ranks{ranks}") == undisturbed[0]
    assert [line["loss"] for line in metrics(work / f"ranks{ranks}")] == undisturbed[1]


def test_killed_and_resumed_on_other_ranks_writes_the_same_bytes(work, undisturbed):
    path = recipe(work, "killed")
    process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", "3", "--max-restarts", "0"], stderr=subprocess.DEVNULL)
    while not (work / "killed" / "checkpoint-2").exists():
        assert process.poll() is None, "the run ended before its first checkpoint"
        time.sleep(0.005)
    kill_ranks(path)
    process.wait()
    lorashard("train", path)
    assert adapter_hash(work / "killed") == undisturbed[0]
    said = lorashard("train", path, "--set", "data.max_bucket_reso=192", code=2).stderr
    assert "data.max_bucket_reso" in said


# Without upscaling the pictures are in 64x128, 64x192, 128x64 and 192x64.
@pytest.mark.parametrize("options, num_buckets", [
    ({}, 3),
    ({"data__min_bucket_reso": None, "data__max_bucket_reso": None, "data__bucket_no_upscale": True}, 4),
], ids=["upscale", "no_upscale"])
def test_caches_change_no_bit(work, options, num_buckets):
    """With prior preservation: class images are kept in the size of every bucket."""
    hashes, files = {}, {}
    for name, ranks, caches in (("live", 1, False), ("cached", 1, True), ("shared", 3, True)):
        out = work / f"{name}-{num_buckets}"
        path = write_dreambooth_recipe(
            work / f"{out.name}.toml", work / "tiny-sd15", work / "pack", out, dreambooth__with_prior_preservation=True,
            dreambooth__class_data_dir=str(work / "class-pack"), dreambooth__class_prompt="a thing", dreambooth__num_class_images=3,
            data__center_crop=True, data__cache_latents=caches, data__cache_text_embeddings=caches, train__train_batch_size=2,
            train__total_batch_size=6, train__max_train_steps=2, **{**BUCKETS, **options})
        lorashard("launch", path, "--ranks", ranks)
        hashes[name] = adapter_hash(out)
        files[name] = {file.relative_to(out): file.read_bytes() for file in sorted((out / "cache").rglob("*.h5"))}
    assert hashes["live"] == hashes["cached"] == hashes["shared"]
    assert files["cached"] == files["shared"]
    stores = {path.parts[1] for path in files["cached"] if path.parts[1].startswith("latents-")}
    assert len(stores) == 2 * num_buckets, "a store for each bucket of the pack, and of the class pack"


def test_epochs_count_the_micro_batches_that_are_filled_up(work):
    repeats = [1, 1, 1, 3, 1, 1, 1, 1, 1]
    pictures = make_shaped_pictures(work / "repeated", SIZES, repeats)
    lorashard("pack", pictures, "--out", work / "repeated-pack", "--repeats-column", "times")
    # 3, 3 and 5 images: 2 + 2 + 3 micro-batches of 2; two epochs of 14 images are 7 steps of 4.
    path = recipe(work, "epochs", data__train_data_dir=str(work / "repeated-pack"), train__max_train_steps=None, train__num_train_epochs=2,
                  train__total_batch_size=4)
    said = lorashard("doctor", path).stderr
    assert "buckets: 64x192: 3, 128x128: 3, 192x64: 5" in said and "7 steps" in said, said
    inspected = json.loads(lorashard("inspect", "--json", work / "repeated-pack").stdout)
    assert inspected["resolution"] == 512 and inspected["buckets"] == "256x832: 3, 512x512: 3, 768x320: 1, 832x256: 4"


def test_the_report_shows_pictures_of_all_shapes(work, undisturbed):
    said = lorashard("report", work / "undisturbed").stderr
    with Image.open(work / "undisturbed" / "report.png") as picture:
        assert picture.size[0] > 1000, said


@pytest.mark.parametrize("name, refused", {
    "steps": ({"data__bucket_reso_steps": 32}, "'data.bucket_reso_steps' = 32 is not a multiple of 64"),
    "min": ({"data__min_bucket_reso": 96}, "'data.min_bucket_reso' = 96 is not a multiple of 'data.bucket_reso_steps' = 64"),
    "range": ({"data__max_bucket_reso": 64}, "is not between 'data.min_bucket_reso' = 64 and 'data.max_bucket_reso' = 64"),
    "off": ({"data__enable_bucket": False}, "'data.min_bucket_reso' has no effect without data.enable_bucket = true"),
    "no_upscale": ({"data__bucket_no_upscale": True}, "'data.min_bucket_reso' has no effect with data.bucket_no_upscale = true"),
}.items())
def test_what_cannot_be_is_refused(work, name, refused):
    overrides, message = refused
    assert message in lorashard("train", recipe(work, f"refused-{name}", **overrides), code=2).stderr


def test_a_picture_that_no_upscale_leaves_nothing_of_is_bad_data(work):
    make_pack(work / "small-pack", make_shaped_pictures(work / "small", [(128, 128), (100, 63)]))
    path = recipe(work, "small", data__train_data_dir=str(work / "small-pack"), data__min_bucket_reso=None, data__max_bucket_reso=None,
                  data__bucket_no_upscale=True)
    said = lorashard("train", path, code=65).stderr
    assert "'001.png'" in said and "'data.bucket_reso_steps' = 64" in said
