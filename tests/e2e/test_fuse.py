"""lorashard fuse against diffusers' fuse_lora + save_pretrained: the same weights, and a folder that loads like the base."""

import json
import os
import shutil

import diffusers
import numpy
import pytest
import torch
from lorashard_runs import lorashard, make_base, make_pack, make_pictures, write_recipe
from safetensors import safe_open
from safetensors.torch import load_file, save_file

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuse")
    make_base(folder / "base")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    for name, seed in (("a", 1), ("b", 2)):
        lorashard("train", write_recipe(folder / f"{name}.toml", folder / "base", folder / "pack", folder / name, seed=seed,
                                        train__max_train_steps=2, lora__lora_alpha=64, optimizer__learning_rate=1e-2))
    return folder


def pipeline(folder, **kwargs):
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, feature_extractor=None,
                                                               requires_safety_checker=False, **kwargs)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def picture(pipe):
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return numpy.asarray(pipe("a house", num_inference_steps=3, latents=noise, height=64, width=64).images[0]).astype(int)


def relative(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()


def test_equals_fuse_lora(work):
    out = json.loads(lorashard("fuse", "--base", work / "base", "--lora", f"{work / 'a'}:0.7", "--lora", f"{work / 'b'}:0.4",
                               "--out", work / "fused", "--json").stdout)
    assert out["weight_files"] == 1 and out["left_out"] == []
    pipe = pipeline(work / "base")
    for name, scale in (("a", 0.7), ("b", 0.4)):
        pipe.load_lora_weights(work / name, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, 0.4])
    pipe.fuse_lora(adapter_names=["a", "b"])
    pipe.unload_lora_weights()
    pipe.save_pretrained(work / "reference")
    found, expected, base = (load_file(work / name / UNET) for name in ("fused", "reference", "base"))
    assert found.keys() == expected.keys() == base.keys()
    changed = [key for key in base if not torch.equal(base[key], expected[key])]
    # Where the UNet's deepest level is one token, its self-attention's to_q and to_k learn nothing.
    assert out["layers"] >= len(changed) > 100
    for key in base:
        assert found[key].dtype == base[key].dtype
        if key in changed:
            assert not torch.equal(found[key], base[key])
            assert relative(found[key], expected[key]) < 1e-6, key
        else:
            assert torch.equal(found[key], base[key]), key
    assert numpy.abs(picture(pipeline(work / "fused")) - picture(pipeline(work / "reference"))).max() <= 1
    with safe_open(work / "fused" / UNET, "pt") as file:
        assert file.metadata()["fused_adapters"] == "a:0.7, b:0.4" and file.metadata()["format"] == "pt"


def test_copies_everything_else(work):
    shutil.copytree(work / "base", work / "rich")
    (work / "rich" / "README.md").write_text("a card")
    (work / "rich" / ".cache").mkdir()
    (work / "rich" / "whole.safetensors").write_bytes(b"x")
    (work / "rich" / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"x")
    (work / "rich" / "vae" / "other.bin").write_bytes(b"kept: the VAE doesn't change")
    half = {key: value.half() for key, value in load_file(work / "base" / UNET).items()}
    save_file(half, work / "rich" / "unet" / "diffusion_pytorch_model.fp16.safetensors", metadata={"format": "pt"})
    out = json.loads(lorashard("fuse", "--base", work / "rich", "--lora", work / "a", "--out", work / "rich-fused", "--json").stdout)
    assert sorted(out["left_out"]) == ["unet/diffusion_pytorch_model.bin", "whole.safetensors"]
    assert out["weight_files"] == 2
    merged, merged_half = (load_file(work / "rich-fused" / "unet" / f"diffusion_pytorch_model{variant}.safetensors")
                           for variant in ("", ".fp16"))
    for key, value in merged.items():
        assert torch.equal(merged_half[key], value.half()), key
    for root, _, files in os.walk(work / "base"):
        for name in files:
            path = os.path.relpath(os.path.join(root, name), work / "base")
            if path != UNET:
                assert (work / "rich-fused" / path).read_bytes() == (work / "base" / path).read_bytes(), path
    assert (work / "rich-fused" / "README.md").exists() and (work / "rich-fused" / "vae" / "other.bin").exists()
    assert not (work / "rich-fused" / ".cache").exists()
    assert not [name for name in os.listdir(work) if ".tmp-" in name]
    # lorashard loads it too.
    assert json.loads(lorashard("inspect", work / "rich-fused", "--json").stdout)["kind"] == "base model"


def test_scale_zero_is_the_base(work):
    lorashard("fuse", "--base", work / "base", "--lora", f"{work / 'a'}:0", "--out", work / "zero")
    assert (work / "zero" / UNET).read_bytes() == (work / "base" / UNET).read_bytes()
    assert (work / "zero" / TEXT_ENCODER).read_bytes() == (work / "base" / TEXT_ENCODER).read_bytes()


def test_refuses_a_folder_that_is_there(work):
    (work / "there").mkdir(exist_ok=True)
    (work / "there" / "mine.txt").write_text("mine")
    done = lorashard("fuse", "--base", work / "base", "--lora", work / "a", "--out", work / "there", code=2)
    assert "exists already" in done.stderr
    assert os.listdir(work / "there") == ["mine.txt"]
    assert "there is no file" in lorashard("fuse", "--base", work / "base", "--lora", "none:0.5", "--out", work / "no", code=2).stderr
    assert not (work / "no").exists()
