"""DreamBooth's class pictures, made by the program itself: the same bytes on any number of ranks and through a kill."""

import json
import os
import subprocess
import time

import pytest
from PIL import Image

from lorashard_runs import LORASHARD, adapter_hash, kill_ranks, lorashard, make_base, make_folder_of_stamps, write_dreambooth_recipe

COUNT = 6
MANY = 20  # so many that a signal comes while they are being made


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("class-pictures")
    make_folder_of_stamps(folder / "fish", "fish", 4)
    make_base(folder / "base")
    return folder


def recipe(work, name, **overrides):
    return write_dreambooth_recipe(
        work / f"{name}.toml", work / "base", work / "fish", work / name, **{
            "train__max_train_steps": 2, "train__total_batch_size": 2, "dreambooth__with_prior_preservation": True,
            "dreambooth__class_data_dir": str(work / f"{name}-class"), "dreambooth__class_prompt": "a photo of a bird",
            "dreambooth__num_class_images": COUNT, **overrides})


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def start_in_background(path, ranks):
    return subprocess.Popen([LORASHARD, "launch", str(path), "--ranks", str(ranks), "--max-restarts", "0"],
                            stderr=subprocess.PIPE, text=True)


def wait_for_pictures(folder, count, process):
    while not folder.exists() or sum(name.endswith(".png") for name in os.listdir(folder)) < count:
        assert process.poll() is None, f"the run ended too early: {process.stderr.read()}"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def undisturbed(work):
    """Made by one process."""
    lorashard("train", recipe(work, "alone"))
    return files_of(work / "alone-class"), files_of(work / "alone" / "class-pack"), adapter_hash(work / "alone")


@pytest.fixture(scope="module")
def undisturbed_many(work):
    lorashard("train", recipe(work, "alone-many", dreambooth__num_class_images=MANY))
    return files_of(work / "alone-many-class"), files_of(work / "alone-many" / "class-pack"), adapter_hash(work / "alone-many")


def assert_equal(work, name, undisturbed):
    assert files_of(work / f"{name}-class") == undisturbed[0]
    assert files_of(work / name / "class-pack") == undisturbed[1]
    assert adapter_hash(work / name) == undisturbed[2]


def test_one_process_makes_what_is_missing(work, undisturbed):
    pictures = undisturbed[0]
    assert len(pictures) == COUNT == len(set(pictures.values())), "two pictures are the same"
    assert [name[-10:] for name in pictures] == [f"{number:06}.png" for number in range(COUNT)]
    with Image.open(work / "alone-class" / sorted(pictures)[0]) as picture:
        assert picture.size == (64, 64) and len(set(picture.getdata())) > 100


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_any_rank_count_makes_the_same_pictures(work, undisturbed, ranks):
    lorashard("launch", recipe(work, f"ranks{ranks}"), "--ranks", ranks)
    assert_equal(work, f"ranks{ranks}", undisturbed)


def test_killed_while_making_them_it_goes_on_and_makes_none_twice(work, undisturbed_many):
    path = recipe(work, "killed", dreambooth__num_class_images=MANY)
    process = start_in_background(path, 2)
    wait_for_pictures(work / "killed-class", 2, process)
    kill_ranks(path)
    process.wait()
    made = {entry.name: entry.stat().st_ino for entry in os.scandir(work / "killed-class") if entry.name.endswith(".png")}
    assert 2 <= len(made) < MANY, "the kill came too late to show anything"
    lorashard("launch", path, "--ranks", 3)
    after = {entry.name: entry.stat().st_ino for entry in os.scandir(work / "killed-class")}
    assert made.items() <= after.items(), "a picture was made twice"
    for name in os.listdir(work / "killed-class"):
        if ".tmp-" in name:  # what the killed rank was writing
            os.remove(work / "killed-class" / name)
    assert_equal(work, "killed", undisturbed_many)


def test_a_request_to_stop_is_heard_between_pictures(work, undisturbed_many):
    path = recipe(work, "stopped", dreambooth__num_class_images=MANY)
    process = start_in_background(path, 2)
    wait_for_pictures(work / "stopped-class", 1, process)
    process.terminate()
    said = process.communicate()[1]
    assert process.returncode == 75, said
    assert "making class pictures: stopped on request" in said
    lorashard("train", path)
    assert_equal(work, "stopped", undisturbed_many)


def test_given_pictures_count_and_keep_their_bytes(work, undisturbed):
    make_folder_of_stamps(work / "some-class", "birds", 4)
    given = files_of(work / "some-class")
    lorashard("train", recipe(work, "some"))
    after = files_of(work / "some-class")
    made = {name: data for name, data in after.items() if name not in given}
    assert after.items() >= given.items()
    assert list(made.items()) == list(undisturbed[0].items())[:COUNT - 4]


def test_enough_pictures_are_not_added_to(work):
    make_folder_of_stamps(work / "enough-class", "birds", COUNT)
    before = files_of(work / "enough-class")
    lorashard("train", recipe(work, "enough"))
    assert files_of(work / "enough-class") == before


def test_another_seed_makes_other_pictures(work, undisturbed):
    lorashard("train", recipe(work, "seed8", seed=8))
    other = files_of(work / "seed8-class")
    assert len(other) == COUNT and not set(other) & set(undisturbed[0]) and not set(other.values()) & set(undisturbed[0].values())


def test_prior_generation_precision_is_that_of_the_class_pictures_alone(work, undisturbed):
    two = {"dreambooth__num_class_images": 2, "train__max_train_steps": 1}
    lorashard("train", recipe(work, "all-bf16", train__mixed_precision="bf16", **two))
    lorashard("launch", recipe(work, "prior-bf16", dreambooth__prior_generation_precision="bf16", **two), "--ranks", 2)
    made = files_of(work / "prior-bf16-class")
    assert made == files_of(work / "all-bf16-class") and not set(made) & set(undisturbed[0])
    lorashard("train", recipe(work, "fp32-on-them", dreambooth__class_data_dir=str(work / "prior-bf16-class"),
                              dreambooth__prior_generation_precision="bf16", **two))
    assert adapter_hash(work / "prior-bf16") == adapter_hash(work / "fp32-on-them") != adapter_hash(work / "all-bf16")
    lorashard("train", recipe(work, "prior-fp32", train__mixed_precision="bf16", dreambooth__prior_generation_precision="fp32", **two))
    assert files_of(work / "prior-fp32-class").items() <= undisturbed[0].items()


def examine(path):
    checks = json.loads(lorashard("doctor", path, "--json").stdout)["checks"]
    return {check["check"]: check["message"] for check in checks}


def test_doctor_counts_them_and_makes_none(work, undisturbed):
    make_folder_of_stamps(work / "doctor-class", "birds", 2)
    assert f"2 given, 0 made before, {COUNT - 2} made" in examine(recipe(work, "doctor"))["class pictures"]
    assert len(os.listdir(work / "doctor-class")) == 2
    after = examine(work / "alone.toml")
    assert f"a pack of {COUNT} pictures, {COUNT} used" in after["class pictures"]
    assert "are those of the checkpoint" in after["resume"]
