"""The empty-handed paths: each a clear error with the exit code of the table, quickly, said once."""

import json
import os
import shutil
import struct

import pytest

from lorashard_runs import lorashard, make_base, make_pack, make_pictures, write_recipe


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors")
    make_pack(folder / "pack", make_pictures(folder / "pictures", count=4))
    make_base(folder / "base")
    return folder


def train(work, code, base=None, data=None, ranks=None, text=None, **overrides):
    """Trains with something wrong; returns what was said."""
    path = write_recipe(work / "wrong.toml", base or work / "base", data or work / "pack", work / "out", **overrides)
    if text is not None:
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
    shutil.rmtree(work / "out", ignore_errors=True)
    command = ["launch", path, "--ranks", ranks] if ranks else ["train", path]
    said = lorashard(*command, code=code).stderr
    assert "hint:" in said, said
    return said


def test_no_subcommand_and_unknown_options_are_wrong_use():
    lorashard(code=2)
    lorashard("trian", code=2)
    lorashard("train", code=2)
    assert "Usage" in lorashard("--help").stdout


def test_missing_recipe(work):
    assert "nowhere.toml" in lorashard("train", work / "nowhere.toml", code=2).stderr


def test_wrong_key_names_the_nearest(work):
    said = train(work, 2, text="[lora]\nrnak = 4\n")
    assert "lora.rnak" in said and "lora.rank" in said


def test_wrong_value_by_set(work):
    path = write_recipe(work / "set.toml", work / "base", work / "pack", work / "out")
    said = lorashard("train", path, "--set", "train.max_train_steps=many", code=2).stderr
    assert "train.max_train_steps" in said and "many" in said


@pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")
def test_cuda_without_a_gpu(work):
    said = train(work, 2, distributed__device="cuda")
    assert "device \"cuda\"" in said and "hint:" in said and "distributed.device" in said


@pytest.mark.parametrize("ranks", [None, 3])
def test_missing_data_is_said_once(work, ranks):
    said = train(work, 2, data=work / "nowhere", ranks=ranks)
    assert said.count("nowhere") == 1, said


def test_missing_base_and_missing_model_file(work):
    assert "no-base" in train(work, 2, base=work / "no-base")
    broken = work / "base-without-unet"
    shutil.copytree(work / "base", broken)
    os.remove(broken / "unet" / "diffusion_pytorch_model.safetensors")
    assert "unet" in train(work, 2, base=broken, ranks=2)


def test_broken_model_file(work):
    broken = work / "base-with-broken-unet"
    shutil.copytree(work / "base", broken)
    weights = broken / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[:8] = struct.pack("<Q", len(content) * 2)
    weights.write_bytes(content)
    assert "diffusion_pytorch_model.safetensors" in train(work, 65, base=broken)


def test_truncated_shard(work):
    broken = work / "truncated"
    shutil.copytree(work / "pack", broken)
    shard = broken / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes()[:-2000])
    assert "shard-00000.h5" in train(work, 65, data=broken, ranks=2)


def test_flipped_bit_in_a_picture(work):
    broken = work / "flipped"
    shutil.copytree(work / "pack", broken)
    shard = broken / "shard-00000.h5"
    content = bytearray(shard.read_bytes())
    content[content.index(b"IDAT") + 40] ^= 1
    shard.write_bytes(content)
    assert "shard-00000.h5" in train(work, 65, data=broken)


def test_pictures_without_captions_are_refused_or_said(work):
    folder = work / "half-captioned"
    make_pictures(folder, count=3)
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(rows[:2]) + "\n")
    said = lorashard("pack", folder, "--out", work / "half").stderr
    assert "002.png" in said, said


def test_a_folder_packed_at_the_first_start_says_what_it_leaves_out(work):
    folder = work / "mixed"
    make_pictures(folder, count=4)
    rows = (folder / "metadata.jsonl").read_text().splitlines()
    (folder / "metadata.jsonl").write_text("\n".join(rows[:3]) + "\n")
    (folder / "002.png").write_bytes((folder / "002.png").read_bytes()[:200])
    said = train(work, 65, data=folder)
    assert "002.png" in said and "data.on_bad_image" in said
    path = write_recipe(work / "mixed.toml", work / "base", folder, work / "mixed-out", train__max_train_steps=1, data__on_bad_image="skip")
    said = lorashard("launch", path, "--ranks", 2).stderr
    assert "003.png" in said and "002.png" in said and said.count("packed 2 pictures (2 with a caption") == 1, said


def test_pictures_without_any_caption_are_warned_of_once(work):
    folder = work / "bare"
    make_pictures(folder, count=2)
    (folder / "metadata.jsonl").unlink()
    path = write_recipe(work / "bare.toml", work / "base", folder, work / "bare-out", train__max_train_steps=1)
    assert lorashard("launch", path, "--ranks", 2).stderr.count("has a caption: every prompt will be empty") == 1
    assert "every prompt will be empty" not in lorashard("train", path, "--set", "captions.caption_prefix=sks", "--set", f"output_dir={work / 'bare-prefix'}").stderr
    captioned = write_recipe(work / "captioned.toml", work / "base", work / "pack", work / "captioned-out", train__max_train_steps=1)
    assert "every prompt will be empty" not in lorashard("train", captioned).stderr


def test_broken_image_stops_or_is_skipped(work):
    folder = work / "one-broken"
    make_pictures(folder, count=3)
    picture = folder / "001.png"
    picture.write_bytes(picture.read_bytes()[:200])
    assert "001.png" in lorashard("pack", folder, "--out", work / "stopped", code=65).stderr
    assert not (work / "stopped" / "index.json").exists()
    assert "001.png" in lorashard("pack", folder, "--out", work / "skipped", "--on-bad-image", "skip").stderr
    assert json.loads(lorashard("inspect", work / "skipped", "--json").stdout)["num_samples"] == 2


def test_resume_with_another_identity_key_names_it(work):
    path = write_recipe(work / "identity.toml", work / "base", work / "pack", work / "identity", train__max_train_steps=3)
    lorashard("train", path)
    said = lorashard("train", path, "--set", "optimizer.learning_rate=0.5", code=2).stderr
    assert "optimizer.learning_rate" in said and "0.5" in said


def test_resume_on_another_processor_is_refused_or_warned_of(work, monkeypatch):
    path = write_recipe(work / "hardware.toml", work / "base", work / "pack", work / "hardware", train__max_train_steps=2)
    lorashard("train", path)
    longer = ["--set", "train.max_train_steps=3"]
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")
    for refused in (lorashard("launch", path, "--ranks", 2, *longer, code=2).stderr, lorashard("doctor", path, *longer, code=2).stderr):
        assert refused.count("a run goes on only on what it began on") == 1 and "'instruction set in use: " in refused, refused
        assert "resume_on_other_hardware" in refused
    warned = lorashard("launch", path, "--ranks", 2, *longer, "--set", "checkpoint.resume_on_other_hardware=true").stderr
    assert warned.count("a run goes on only on what it began on") == 1 and "warning" in warned, warned
    monkeypatch.delenv("ATEN_CPU_CAPABILITY")
    lorashard("train", path, "--set", "train.max_train_steps=4", code=2)  # the newest checkpoint is the other one's


def test_resume_with_another_pack_names_it(work):
    path = write_recipe(work / "repacked.toml", work / "base", work / "pack", work / "repacked", train__max_train_steps=3)
    lorashard("train", path)
    other = make_pack(work / "other-pack", make_pictures(work / "other-pictures", count=4, seed=2))
    said = lorashard("train", path, "--set", f"data.train_data_dir='{other}'", code=2).stderr
    assert "pack" in said and "other-pack" in said


def test_output_folder_that_cannot_be_made(work):
    (work / "a-file").write_text("in the way")
    path = write_recipe(work / "in-the-way.toml", work / "base", work / "pack", work / "a-file" / "out")
    assert "a-file" in lorashard("train", path, code=74).stderr


def test_inspect_says_what_things_are(work):
    assert json.loads(lorashard("inspect", work / "base", "--json").stdout)["kind"] == "base model"
    assert json.loads(lorashard("inspect", work / "pack", "--verify", "--json").stdout)["num_samples"] == 4
    lorashard("inspect", work / "nowhere", code=2)
    (work / "noise.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0 not a header!!!")
    lorashard("inspect", work / "noise.safetensors", code=65)
