"""Training on a base in one file is training on its folder, and gives the same bytes on any number of ranks."""

import os
import sys

import numpy as np
import pytest
from lorashard_runs import REPO, VOCABULARY, adapter_hash, lorashard, make_base, make_pack, make_pictures, metrics, write_recipe
from PIL import Image
from safetensors.torch import save_file

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from original_layout import original_layout  # noqa: E402


def test_sdxl_in_one_file_trains_as_its_folder(tmp_path):
    base = make_base(tmp_path / "base", "tiny-sdxl")
    file = tmp_path / "sdxl.safetensors"
    save_file(original_layout(base, "sdxl"), file)
    make_pack(tmp_path / "pack", make_pictures(tmp_path / "pictures"))
    own = {"train__max_train_steps": 3, "checkpoint__checkpointing_steps": 2}
    lorashard("train", write_recipe(tmp_path / "folder.toml", base, tmp_path / "pack", tmp_path / "folder", **own))
    # The configs of this tiny base come from its folder; the tokenizers from CLIP's vocabulary.
    own |= {"model__config": str(base), "model__tokenizer_name": VOCABULARY}
    path = write_recipe(tmp_path / "file.toml", file, tmp_path / "pack", tmp_path / "file", **own)
    lorashard("launch", path, "--ranks", 2)
    # Not bit for bit: kernels round by where in memory a weight begins, which is where it lies in its file.
    losses = [line["loss"] for line in metrics(tmp_path / "file")]
    assert losses == pytest.approx([line["loss"] for line in metrics(tmp_path / "folder")], rel=1e-4)
    assert "from_single_file" in (tmp_path / "file" / "README.md").read_text()
    lorashard("train", write_recipe(tmp_path / "alone.toml", file, tmp_path / "pack", tmp_path / "alone", **own))
    assert adapter_hash(tmp_path / "file") == adapter_hash(tmp_path / "alone")

    # The other commands take it with the same two, and say what is missing without.
    adapter = ["--lora", tmp_path / "file", "--prompt", "a fish", "--num-inference-steps", 2, "--seed", 1]
    both = ["--config", base, "--tokenizer", VOCABULARY]
    assert "--tokenizer" in lorashard("generate", "--base", file, *adapter, "--out", tmp_path / "no.png", code=2).stderr
    lorashard("generate", "--base", file, *both, *adapter, "--out", tmp_path / "file.png")
    lorashard("generate", "--base", base, *adapter, "--out", tmp_path / "folder.png")
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png"), dtype=int) for name in ("file", "folder")]
    assert abs(pictures[0] - pictures[1]).max() <= 1 and pictures[0].std() > 10
    lorashard("convert", tmp_path / "file", tmp_path / "kohya.safetensors", "--to", "kohya", "--base", file, *both)

    # The file is the run's identity: another one is no base to go on with.
    other = make_base(tmp_path / "other", "tiny-sdxl", seed=1)
    save_file(original_layout(other, "sdxl"), file)
    said = lorashard("train", path, "--set", "train.max_train_steps=4", code=2).stderr
    assert "sdxl.safetensors" in said
