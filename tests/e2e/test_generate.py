"""lorashard generate as its user sees it: pictures, their names and texts, ranks, seeds, adapters, refusals."""

import hashlib
import json
import os
import subprocess

import pytest
from lorashard_runs import LORASHARD, lorashard, make_base, make_pack, make_pictures, write_recipe
from PIL import Image

MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_base(tmp_path_factory.mktemp("generate") / "base")


def generate(base, out, *more, ranks=1, **kwargs):
    command = ["generate", "--base", base, "--prompt", "a red house", "--out", out, "--threads", 1]
    if "--num-inference-steps" not in more:
        command += ["--num-inference-steps", 4]
    if ranks == 1:
        return lorashard(*command, *more, **kwargs)
    done = subprocess.run([*MPIRUN, "-n", str(ranks), LORASHARD, *map(str, command), *map(str, more)],
                          capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


def pixels(path):
    with Image.open(path) as image:
        return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def test_one_picture_says_how_it_was_made(base, tmp_path):
    done = generate(base, tmp_path / "a.png", "--seed", 5, "--negative-prompt", "häßlich", "--scheduler", "euler", "--karras",
                    "--guidance-scale", 3, "--height", 64, "--width", 128, "--json")
    out = json.loads(done.stdout)
    assert out["pictures"] == [{"number": 0, "file": str(tmp_path / "a.png")}]
    assert (out["seed"], out["scheduler"], out["height"], out["width"]) == (5, "euler", 64, 128)
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (128, 64)
        text = image.text["parameters"]
    assert text.splitlines()[0] == "a red house"
    assert "Negative prompt: häßlich" in text
    for words in ("Steps: 4", "Sampler: Euler Karras", "CFG scale: 3", "Seed: 5", "Size: 128x64", "Model: base"):
        assert words in text


def test_several_pictures_are_the_same_on_any_number_of_ranks(base, tmp_path):
    for ranks in (1, 2, 3):
        (tmp_path / str(ranks)).mkdir()
        generate(base, tmp_path / str(ranks) / "a.png", "--num-images", 4, "--seed", 1, ranks=ranks)
    names = ["a-0.png", "a-1.png", "a-2.png", "a-3.png", "a.png"]
    for ranks in (1, 2, 3):
        assert sorted(os.listdir(tmp_path / str(ranks))) == names
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()
    assert len({pixels(tmp_path / "1" / name) for name in names}) == 5
    with Image.open(tmp_path / "1" / "a.png") as sheet:
        assert sheet.width > 4 * 64

    # A picture of its own is the one of the series.
    generate(base, tmp_path / "third.png", "--first-image", 2, "--seed", 1)
    assert pixels(tmp_path / "third.png") == pixels(tmp_path / "1" / "a-2.png")
    generate(base, tmp_path / "other.png", "--first-image", 2, "--seed", 2)
    assert pixels(tmp_path / "other.png") != pixels(tmp_path / "third.png")


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    """A trained adapter whose effect is seen: alpha is large."""
    work = tmp_path_factory.mktemp("adapter")
    make_pack(work / "pack", make_pictures(work / "pictures"))
    lorashard("train", write_recipe(work / "recipe.toml", base, work / "pack", work / "run", train__max_train_steps=3,
                                    lora__lora_alpha=64, optimizer__learning_rate=1e-2))
    return work / "run"


def test_adapters_and_their_scales(base, adapter, tmp_path):
    def hash_with(name, *loras):
        more = [part for lora in loras for part in ("--lora", lora)]
        generate(base, tmp_path / f"{name}.png", *more)
        return pixels(tmp_path / f"{name}.png")

    plain, full, half = hash_with("plain"), hash_with("full", adapter), hash_with("half", f"{adapter}:0.5")
    assert len({plain, full, half}) == 3
    assert hash_with("zero", f"{adapter}:0") == plain
    assert hash_with("file", adapter / "pytorch_lora_weights.safetensors") == full
    assert hash_with("cancelled", f"{adapter}:0.5", f"{adapter}:0") == half
    with Image.open(tmp_path / "half.png") as image:
        assert "LoRA: \"run:0.5\"" in image.text["parameters"]


@pytest.mark.parametrize("more,words", [
    (["--height", 70], "height 70 is not a multiple of 64"),
    (["--scheduler", "heun"], "scheduler 'heun' is unknown"),
    (["--scheduler", "ddim", "--karras"], "no Karras noise levels"),
    (["--num-inference-steps", 0], "num_inference_steps is 0"),
    pytest.param(["--device", "cuda"], "taking a GPU for each rank",
                 marks=pytest.mark.skipif(os.path.exists("/dev/nvidiactl"), reason="this machine has an NVIDIA GPU")),
    (["--lora", "missing.safetensors:0.5"], "there is no file 'missing.safetensors'"),
])
def test_refuses(base, tmp_path, more, words):
    done = generate(base, tmp_path / "a.png", *more, code=2)
    assert words in done.stderr
    assert not list(tmp_path.iterdir())


def test_refuses_an_output_it_cannot_write_before_it_begins(base, tmp_path):
    assert "expected a name that ends with .png" in generate(base, tmp_path / "a.jpg", code=2).stderr
    assert "there is no folder" in generate(base, tmp_path / "none" / "a.png", code=2).stderr


def test_a_request_to_stop_leaves_no_half_picture(base, tmp_path):
    run = subprocess.Popen([LORASHARD, "generate", "--base", base, "--prompt", "a", "--out", str(tmp_path / "a.png"),
                            "--num-inference-steps", "900", "--num-images", "50"], stderr=subprocess.PIPE, text=True)
    run.stderr.readline()  # the progress line: it is at work
    run.terminate()
    _, errors = run.communicate()
    assert run.returncode == 75, errors
    assert "stopped on request" in errors
    assert not list(tmp_path.glob("a.png")) and not list(tmp_path.glob("*.tmp*"))
