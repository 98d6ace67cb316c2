"""lorashard fuse on a base in one file of the original layout: the weights of the fused folder, which tests/e2e/test_fuse.py holds against
diffusers, in a file that from_single_file loads."""

import json
import os
import sys

import diffusers
import pytest
import torch
from lorashard_runs import REPO, VOCABULARY, lorashard, make_base, make_pack, make_pictures, write_recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from original_layout import original_layout  # noqa: E402


@pytest.fixture(scope="module", params=["sd15", "sd21", "sdxl"])
def work(request, tmp_path_factory):
    """A base as a folder and as a file, and an adapter of all its linear layers, text encoders too."""
    folder = tmp_path_factory.mktemp(request.param)
    make_base(folder / "base", f"tiny-{request.param}")
    save_file(original_layout(folder / "base", request.param), folder / "base.safetensors", metadata={"modelspec.title": "tiny"})
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    lorashard("train", write_recipe(folder / "a.toml", folder / "base", folder / "pack", folder / "a", train__max_train_steps=2,
                                    lora__target_modules=["all-linear", "conv"], lora__train_text_encoder=True,
                                    lora__text_encoder_target_modules=["all-linear"], optimizer__learning_rate=1e-2))
    return folder, request.param


def fuse(folder, base, out, *more, code=0):
    return lorashard("fuse", "--base", base, "--config", folder / "base", "--tokenizer", VOCABULARY, "--lora", f"{folder / 'a'}:0.7", "--out",
                     out, *more, code=code)


@pytest.fixture(scope="module")
def fused(work):
    """What was said: base.safetensors as fused.safetensors, and base as fused."""
    folder, _ = work
    lorashard("fuse", "--base", folder / "base", "--lora", f"{folder / 'a'}:0.7", "--out", folder / "fused")
    return json.loads(fuse(folder, folder / "base.safetensors", folder / "fused.safetensors", "--json").stdout)


def test_every_tensor_is_that_of_the_fused_folder(work, fused):
    folder, family = work
    found, expected, before = (load_file(folder / "fused.safetensors"), original_layout(folder / "fused", family),
                               load_file(folder / "base.safetensors"))
    assert found.keys() == expected.keys() == before.keys()
    changed = [key for key in before if not torch.equal(before[key], expected[key])]
    assert fused["weight_files"] == 1 and len(changed) > 150
    assert any("cond_stage" in key or "conditioner" in key for key in changed)
    assert (family != "sdxl") or "conditioner.embedders.1.model.text_projection" in changed
    for key, value in expected.items():
        assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    with safe_open(folder / "fused.safetensors", "pt") as file:
        assert file.metadata() == {"modelspec.title": "tiny", "fused_adapters": "a:0.7"}


def test_diffusers_loads_it(work, fused):
    folder, family = work
    cls = diffusers.StableDiffusionXLPipeline if family == "sdxl" else diffusers.StableDiffusionPipeline
    found = cls.from_single_file(folder / "fused.safetensors", config=str(folder / "base"), local_files_only=True)
    expected = cls.from_pretrained(folder / "fused", local_files_only=True)
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])):
        own = getattr(found, name).state_dict()
        for key, value in getattr(expected, name).state_dict().items():
            assert torch.equal(own[key], value), (name, key)


def test_a_file_whose_tensors_lie_at_odd_places_is_fused_too(work, fused):
    """Files of 2022 have headers of any length."""
    folder, _ = work
    data = (folder / "base.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8:8 + length].rstrip()
    header += b" " * (1 - len(header) % 2)
    assert len(header) % 2 == 1
    (folder / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length:])
    fuse(folder, folder / "odd.safetensors", folder / "deep" / "er" / "odd.safetensors")
    found, expected = load_file(folder / "deep" / "er" / "odd.safetensors"), load_file(folder / "fused.safetensors")
    assert found.keys() == expected.keys()
    # Kernels may round by where in memory a weight lies, where there is a product to make: not here.
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_file_of_half_precision_stays_one(work, fused):
    folder, _ = work
    half = {key: value.half() if value.dtype == torch.float32 else value for key, value in load_file(folder / "base.safetensors").items()}
    save_file(half, folder / "half.safetensors")
    fuse(folder, folder / "half.safetensors", folder / "half-fused.safetensors")
    found = load_file(folder / "half-fused.safetensors")
    assert all(found[key].dtype == value.dtype for key, value in half.items())
    changed = [key for key, value in half.items() if not torch.equal(found[key], value)]
    whole = load_file(folder / "fused.safetensors")
    assert len(changed) > 100
    assert all((found[key].double() - whole[key].double()).norm() < 1e-3 * whole[key].double().norm() for key in changed)


def test_names_that_do_not_fit_are_refused(work):
    folder, _ = work
    assert "there is no such file" in fuse(folder, folder / "typo.safetensors", folder / "new.safetensors", code=2).stderr
    assert "is no name for one" in fuse(folder, folder / "base.safetensors", folder / "a-folder", code=2).stderr
    assert "is a file's name" in fuse(folder, folder / "base", folder / "a.safetensors", code=2).stderr
    (folder / "there.safetensors").write_bytes(b"mine")
    assert "exists already" in fuse(folder, folder / "base.safetensors", folder / "there.safetensors", code=2).stderr
    assert (folder / "there.safetensors").read_bytes() == b"mine"
