"""lorashard bench: figures of real steps, and nothing left behind but caches."""

import json
import os
import subprocess

import pytest

from lorashard_runs import LORASHARD, lorashard, make_base, make_pack, make_pictures, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    make_base(folder / "base")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    return folder


def bench(recipe, *more, ranks=1, code=0):
    command = [LORASHARD, "bench", str(recipe), "--steps", "4", "--left-out", "2", *more]
    if ranks > 1:
        root = ["--allow-run-as-root"] if os.getuid() == 0 else []
        command = ["mpirun", *root, "--oversubscribe", "--bind-to", "none", "-n", str(ranks), *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("ranks", [1, 2])
def test_measures_steps_and_leaves_only_caches(work, ranks):
    recipe = write_recipe(work / f"{ranks}.toml", work / "base", work / "pack", work / f"run{ranks}", train__total_batch_size=4,
                          data__center_crop=True, data__cache_latents=True, validation__validation_prompt="a red house")
    figures = json.loads(bench(recipe, "--json", ranks=ranks).stdout)
    assert figures["steps"] == 4 and figures["ranks"] == ranks and figures["images_per_step"] == 4
    assert 0 < figures["fastest_step_ms"] <= figures["step_ms"] <= figures["slowest_step_ms"]
    assert figures["images_per_second"] == pytest.approx(4000 / figures["step_ms"])
    assert figures["start_to_first_step_s"] > 0 and figures["peak_resident_memory_bytes"] > 50 << 20
    assert os.listdir(work / f"run{ranks}") == ["cache"] and not (work / f"run{ranks}.bench").exists()


def test_says_it_in_words(work):
    recipe = write_recipe(work / "words.toml", work / "base", work / "pack", work / "words")
    said = bench(recipe, "--set", "train.total_batch_size=2").stderr
    assert "a step of 2 images on 1 rank takes" in said and "peak memory of the largest rank" in said


def test_a_folder_of_another_kind_stays(work):
    recipe = write_recipe(work / "other.toml", work / "base", work / "pack", work / "other")
    (work / "other.bench").mkdir()
    (work / "other.bench" / "mine").write_text("kept")
    assert "isn't a bench's" in bench(recipe, code=2).stderr
    assert (work / "other.bench" / "mine").read_text() == "kept"


def test_what_an_interrupted_bench_left_is_no_obstacle(work):
    recipe = write_recipe(work / "again.toml", work / "base", work / "pack", work / "again")
    left = work / "again.bench"
    left.mkdir()
    (left / "lorashard-bench").write_text("")
    (left / "metrics.jsonl").write_text("half a li")
    bench(recipe)
    assert not left.exists()


def test_the_run_itself_is_not_touched(work):
    recipe = write_recipe(work / "kept.toml", work / "base", work / "pack", work / "kept", train__max_train_steps=2)
    lorashard("train", recipe)
    before = {name: os.stat(work / "kept" / name).st_mtime_ns for name in os.listdir(work / "kept")}
    bench(recipe)
    assert {name: os.stat(work / "kept" / name).st_mtime_ns for name in os.listdir(work / "kept")} == before
