"""`lorashard doctor`: a good recipe passes, each fault has its line and the exit code that the run itself would end with."""

import json
import os
import shutil
import subprocess
import time

import pytest
from lorashard_runs import LORASHARD, lorashard, make_base, make_pack, make_pictures, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctor")
    make_pack(folder / "pack", make_pictures(folder / "pictures", count=4))
    make_base(folder / "base")
    lorashard("train", write_recipe(folder / "done.toml", folder / "base", folder / "pack", folder / "done", train__max_train_steps=3))
    return folder


def recipe(work, base="base", data="pack", out="out", **overrides):
    return write_recipe(work / "recipe.toml", work / base, work / data, work / out, **overrides)


def examine(path, *options, code=0):
    """The report as {check: line}, after what holds for every report."""
    report = json.loads(lorashard("doctor", path, *options, "--json", code=code).stdout)
    assert report["exit_code"] == code
    failed = [line for line in report["checks"] if line["status"] == "FAILED"]
    assert [line["exit_code"] for line in failed][:1] == ([code] if code else [])
    return {line["check"]: line for line in report["checks"]}


def test_without_a_recipe_it_describes_the_machine():
    report = json.loads(lorashard("doctor", "--json").stdout)
    lines = {line["check"]: line["message"] for line in report["checks"]}
    assert list(lines) == ["program", "processor", "memory", "MPI", "CUDA", "parquet"]
    assert lorashard("--version").stdout.strip() in lines["program"] and "LibTorch 2.11.0" in lines["program"]
    cores = len(os.sched_getaffinity(0))
    assert f", {cores} core" in lines["processor"]
    assert lines["parquet"].startswith("Arrow ")
    assert "Open MPI v" in lines["MPI"] and "one process" in lines["MPI"]


def test_cuda_line_says_what_this_build_has():
    message = next(line["message"] for line in json.loads(lorashard("doctor", "--json").stdout)["checks"] if line["check"] == "CUDA")
    if os.path.exists(os.path.join(os.path.dirname(os.path.abspath(LORASHARD)), "liblorashard_cuda.so")):
        assert message.startswith("CUDA 13.") and "NCCL 2." in message
        assert ("no device: " in message) != ("compute " in message)
    else:
        assert message.startswith("not in this build")


def test_a_good_recipe_passes_and_nothing_is_left_behind(work):
    before = sorted(os.listdir(work))
    lines = examine(recipe(work, out="new/out"), "--ranks", 4)
    assert all(line["status"] == "OK" for line in lines.values()), lines
    assert "a pack of 4 pictures, 4 trained on" in lines["data"]["message"]
    assert "6 steps of 6 micro-batches of 1 on 4 ranks" in lines["steps"]["message"]
    assert "start at step 0" in lines["checkpoint"]["message"]
    assert sorted(set(os.listdir(work)) - {"recipe.toml"}) == sorted(set(before) - {"recipe.toml"})


def test_the_report_for_people(work):
    said = lorashard("doctor", recipe(work))
    assert said.stdout == ""
    assert "OK       resolution: 64 fits the base model" in said.stderr
    said = lorashard("doctor", recipe(work, base="no-base"), code=2).stderr
    assert "FAILED   base model: " in said and "no-base" in said and "hint: " in said


def test_a_folder_of_pictures_is_counted_not_packed(work):
    assert "4 pictures, 0 left out" in examine(recipe(work, data="pictures"))["data"]["message"]
    assert not (work / "out").exists()


def test_a_run_that_goes_on(work):
    lines = examine(recipe(work, out="done"))
    assert "go on from" in lines["checkpoint"]["message"] and "at step 3" in lines["checkpoint"]["message"]
    assert lines["resume"]["status"] == "OK"
    assert not (work / "done" / "run.lease").exists()


def test_idle_ranks_are_named(work):
    assert "2 ranks would have nothing to do" in examine(recipe(work), "--ranks", 8)["steps"]["message"]


def broken_base(work):
    shutil.copytree(work / "base", work / "broken-base", dirs_exist_ok=True)
    (work / "broken-base" / "unet" / "config.json").write_text("{")


def broken_pack(work):
    shutil.copytree(work / "pack", work / "broken-pack", dirs_exist_ok=True)
    for name in os.listdir(work / "broken-pack"):
        if name.endswith(".h5"):
            os.truncate(work / "broken-pack" / name, 100)


def file_in_the_way(work):
    (work / "file").write_text("")


FAULTS = {  # name: (what to prepare, recipe, exit code, check, words)
    "missing data": (None, {"data": "nowhere"}, 2, "data", "nowhere"),
    "broken pack": (broken_pack, {"data": "broken-pack"}, 65, "data", "shard-"),
    "missing base": (None, {"base": "no-base"}, 2, "base model", "no-base"),
    "broken base": (broken_base, {"base": "broken-base"}, 65, "base model", "config.json"),
    "targets": (None, {"lora__target_modules": ["to_x"]}, 2, "adapter", "to_x"),
    "adapter to start from": (None, {"lora__lora_weights": "nowhere.safetensors"}, 2, "steps", "nowhere.safetensors"),
    "rate of what isn't trained": (None, {"optimizer__text_encoder_lr": 1e-5}, 2, "adapter", "text_encoder_lr"),
    "timesteps": (None, {"timesteps__min_timestep": 1000}, 2, "loss", "timestep"),
    "loss": (None, {"loss__scale_v_pred_loss_like_noise_pred": True}, 2, "loss", "scale_v_pred_loss_like_noise_pred"),
    "size of pictures": (None, {"validation__validation_prompt": "a fish", "validation__height": 72}, 2, "validation", "72"),
    "device": (None, {"distributed__device": "cuda"}, 2, "device", "cuda"),
    "resolution": (None, {"data__resolution": 72}, 2, "resolution", "72"),
    "output_dir": (file_in_the_way, {"out": "file/out"}, 74, "output_dir", "file/out"),
    "batch size": (None, {"train__train_batch_size": 4}, 2, None, "total_batch_size"),
    "another run's checkpoint": (None, {"out": "done", "lora__rank": 8}, 2, "resume", "lora.rank"),
    "resume none": (None, {"out": "done", "checkpoint__resume_from_checkpoint": "none"}, 2, "checkpoint", "done"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_has_its_line_and_the_code_of_the_run(work, name):
    prepare, values, code, check, words = FAULTS[name]
    if prepare:
        prepare(work)
    path = recipe(work, **values)
    lines = examine(path, code=code)
    failed = {name: line for name, line in lines.items() if line["status"] == "FAILED"}
    assert len(failed) == 1 and (check is None or check in failed), lines
    (line,) = failed.values()
    assert words in line["message"]
    assert line["message"] in lorashard("train", path, code=code).stderr


def test_a_recipe_that_does_not_read_ends_the_report(work):
    assert list(examine(work / "nowhere.toml", code=2))[-1] == "recipe"


def test_a_folder_another_run_holds(work):
    path = recipe(work, out="held", train__max_train_steps=100000, checkpoint__checkpointing_steps=100000)
    with subprocess.Popen([LORASHARD, "train", path], stderr=subprocess.PIPE, text=True) as run:
        try:
            while not (work / "held" / "metrics.jsonl").exists():
                assert run.poll() is None
                time.sleep(0.05)
            line = examine(path, code=2)["output_dir"]
            assert line["status"] == "FAILED" and str(run.pid) in line["message"] + line["hint"]
        finally:
            run.terminate()
            run.communicate()
    assert run.returncode == 75, "the run went on undisturbed until it was stopped"


def test_under_mpirun_one_rank_speaks(work):
    command = ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2", LORASHARD, "doctor", recipe(work), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    messages = {line["check"]: line["message"] for line in json.loads(done.stdout)["checks"]}
    assert "2 ranks, 2 on this host" in messages["MPI"] and "on 2 ranks" in messages["steps"]
