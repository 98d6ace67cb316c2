"""Caches of latents and text embeddings, and gradient checkpointing: the same adapter, bit for bit, with and without."""

import signal
import subprocess
import time

import pytest

from lorashard_runs import LORASHARD, adapter_hash, kill_ranks, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe

CACHES = {"data__cache_latents": True, "data__cache_text_embeddings": True}
COMMON = {"data__center_crop": True, "data__random_flip": True, "train__max_train_steps": 4}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("caches")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    return write_recipe(work / f"{name}.toml", work / "base", work / "pack", work / name, **{**COMMON, **overrides})


def cache_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*.h5"))}


@pytest.fixture(scope="module")
def live(work):
    lorashard("train", recipe(work, "live"))
    return adapter_hash(work / "live"), [line["loss"] for line in metrics(work / "live")]


@pytest.mark.parametrize("ranks", [1, 3])
def test_cached_runs_write_the_bytes_of_live_ones_and_the_same_caches(work, live, ranks):
    lorashard("launch", recipe(work, f"cached{ranks}", **CACHES), "--ranks", ranks)
    assert adapter_hash(work / f"cached{ranks}") == live[0]
    assert [line["loss"] for line in metrics(work / f"cached{ranks}")] == live[1]
    files = cache_files(work / f"cached{ranks}" / "cache")
    kinds = sorted({path.parts[0].split("-")[0] for path in files})
    assert kinds == ["latents", "texts"]
    if ranks > 1:
        assert files == cache_files(work / "cached1" / "cache")


def test_caches_are_shared_by_runs_and_a_damaged_part_is_made_anew(work, live):
    shared = {"data__cache_dir": str(work / "shared"), **CACHES}
    lorashard("train", recipe(work, "first", **shared))
    before = cache_files(work / "shared")
    damaged = next(path for path in sorted((work / "shared").rglob("*.h5")) if path.parent.name.startswith("latents"))
    damaged.write_bytes(damaged.read_bytes()[:1000])
    said = lorashard("train", recipe(work, "second", **shared)).stderr
    assert damaged.name in said and "made anew" in said
    assert cache_files(work / "shared") == before
    assert adapter_hash(work / "second") == live[0]


def test_text_dropout_and_shuffling_stay_possible(work):
    captions = {"captions__caption_dropout_rate": 0.4, "captions__shuffle_caption": True, "captions__caption_separator": " "}
    for name, extra in (("shuffled", {}), ("shuffled_cached", CACHES)):
        lorashard("train", recipe(work, name, **captions, **extra))
    assert adapter_hash(work / "shuffled") == adapter_hash(work / "shuffled_cached")


def test_killed_while_encoding_and_started_again_on_other_ranks(work, live):
    path = recipe(work, "killed", **CACHES)
    process = subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", "2", "--max-restarts", "0"], stderr=subprocess.DEVNULL)
    while not list((work / "killed").glob("cache/latents-*")):
        assert process.poll() is None, "the run ended before its cache"
        time.sleep(0.002)
    kill_ranks(path)
    process.wait()
    lorashard("launch", path, "--ranks", 3)
    assert adapter_hash(work / "killed") == live[0]


def test_stopped_while_encoding_leaves_with_75_and_goes_on(work, live):
    many = make_pack(work / "many", make_pictures(work / "many-pictures", count=200, seed=3))
    few = {**COMMON, "train__max_train_steps": 2}
    path = write_recipe(work / "stopped.toml", work / "base", many, work / "stopped", **few, **CACHES)
    process = subprocess.Popen([LORASHARD, "train", str(path)], stderr=subprocess.PIPE, text=True)
    while not list((work / "stopped").glob("cache/latents-*")):
        assert process.poll() is None, "the run ended before its cache"
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    said = process.communicate()[1]
    assert process.returncode == 75 and "step 1" not in said, said
    lorashard("train", path)
    lorashard("train", write_recipe(work / "many.toml", work / "base", many, work / "many-live", **few))
    assert adapter_hash(work / "stopped") == adapter_hash(work / "many-live")


def test_gradient_checkpointing_changes_no_bit(work, live):
    lorashard("train", recipe(work, "checkpointing", train__gradient_checkpointing=True))
    assert adapter_hash(work / "checkpointing") == live[0]


def test_what_cannot_be_cached_is_refused(work):
    said = lorashard("train", recipe(work, "random_crop", data__cache_latents=True, data__center_crop=False), code=2).stderr
    assert "'data.cache_latents' needs 'data.center_crop'" in said
    said = lorashard("train", recipe(work, "trained", data__cache_text_embeddings=True, lora__train_text_encoder=True), code=2).stderr
    assert "exclude each other" in said


def test_clip_skip_makes_texts_of_its_own_beside_the_others(work, live):
    shared = {"data__cache_dir": str(work / "shared-texts"), **CACHES}
    lorashard("train", recipe(work, "all-layers", **shared))
    lorashard("train", recipe(work, "skipped-cached", model__clip_skip=1, **shared))
    lorashard("train", recipe(work, "skipped", model__clip_skip=1))
    assert adapter_hash(work / "all-layers") == live[0]
    assert adapter_hash(work / "skipped-cached") == adapter_hash(work / "skipped") != live[0]


def test_clip_skip_of_every_layer_is_refused(work):
    said = lorashard("train", recipe(work, "no-layer", model__clip_skip=4), code=2).stderr
    assert "clip_skip is 4, expected 0 to 3: it has 4 layers" in said and "hint:" in said
