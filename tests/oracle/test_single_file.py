"""Bases in one file of the original layout: the same tensors as diffusers' converters give, the same model as the folder."""

import os
import subprocess

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders import single_file_utils as reference
from original_layout import original_layout
from safetensors.torch import load_file, save_file

LORASHARD = os.environ["LORASHARD"]
PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "single_file_probe")
REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VOCABULARY = os.environ.get("LORASHARD_CLIP_VOCABULARY", os.path.join(REPO, ".venv/share/lorashard/bpe_simple_vocab_16e6.txt.gz"))
FAMILIES = ["sd15", "sd21", "sdxl"]
TEXT = "A photo of a cat! it's 2 o'clock"


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Of each family a tiny base as a folder, `sd15`, and in one file, `sd15.safetensors`."""
    folder = tmp_path_factory.mktemp("single-file")
    for family in FAMILIES:
        subprocess.run([LORASHARD, "init-base", "--preset", f"tiny-{family}", "--vocabulary", VOCABULARY, folder / family], check=True)
        save_file(original_layout(folder / family, family), folder / f"{family}.safetensors")
    return folder


def run_probe(base, out, config="", tokenizer="", vae="", code=0):
    done = subprocess.run([PROBE, base, config, tokenizer, vae, TEXT, out], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    if code:
        return done.stderr
    *not_mapped, base_hash = done.stdout.split()
    return load_file(out), not_mapped, base_hash


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_that_of_diffusers_converters(work, tmp_path, family):
    found, _, _ = run_probe(work / f"{family}.safetensors", tmp_path / "out.safetensors", work / family)
    original = load_file(work / f"{family}.safetensors")
    unet, vae = (cls.load_config(work / family / name) for cls, name in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae")))
    expected = {f"unet.{key}": value for key, value in reference.convert_ldm_unet_checkpoint(dict(original), unet).items()}
    expected |= {f"vae.{key}": value for key, value in reference.convert_ldm_vae_checkpoint(dict(original), vae).items()}
    pipeline = DiffusionPipeline.from_pretrained(work / family, local_files_only=True)
    if family == "sd21":
        text = reference.convert_open_clip_checkpoint(pipeline.text_encoder, dict(original), prefix="cond_stage_model.model.")
    else:
        text = reference.convert_ldm_clip_checkpoint(dict(original))
    expected |= {f"text_encoder.{key}": value for key, value in text.items() if not key.endswith("position_ids")}
    if family == "sdxl":
        second = reference.convert_open_clip_checkpoint(pipeline.text_encoder_2, dict(original), prefix="conditioner.embedders.1.model.")
        expected |= {f"text_encoder_2.{key}": value for key, value in second.items()}
    assert {key for key in found if not key.startswith(("input_ids", "prediction_type"))} == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_of_the_folder(work, tmp_path, family):
    folder, not_mapped, folder_hash = run_probe(work / family, tmp_path / "folder.safetensors")
    assert not_mapped == []
    found, not_mapped, file_hash = run_probe(work / f"{family}.safetensors", tmp_path / "file.safetensors", work / family)
    # Every weight is read where the file is mapped, but the one that is stored transposed.
    assert not_mapped == (["text_encoder_2.text_projection.weight"] if family == "sdxl" else [])
    assert found.keys() == folder.keys()  # prediction_type too
    for key, value in folder.items():
        assert torch.equal(found[key], value), key
    assert file_hash != folder_hash and len(file_hash) == 64


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_what_this_test_wrote(work, tmp_path, family):
    """Or the file would not be in the layout it says it is in."""
    cls = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipeline = cls.from_single_file(work / f"{family}.safetensors", config=str(work / family), local_files_only=True)
    folder = DiffusionPipeline.from_pretrained(work / family, local_files_only=True)
    for name in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if family == "sdxl" else [])):
        expected = getattr(folder, name).state_dict()
        found = getattr(pipeline, name).state_dict()
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(found[key], value), (name, key)


@pytest.mark.parametrize("family", FAMILIES)
def test_clips_vocabulary_file_is_tokenizer_enough(work, tmp_path, family):
    expected, _, first_hash = run_probe(work / f"{family}.safetensors", tmp_path / "folder.safetensors", work / family)
    found, _, second_hash = run_probe(work / f"{family}.safetensors", tmp_path / "file.safetensors", work / family, VOCABULARY)
    for key in ("input_ids", *(["input_ids_2"] if family == "sdxl" else [])):
        assert torch.equal(found[key], expected[key]), key
    assert first_hash != second_hash
    # Another family's folder lends its vocabulary, not what it pads with.
    other, _, _ = run_probe(work / f"{family}.safetensors", tmp_path / "other.safetensors", work / family, work / "sd15" / "tokenizer")
    assert torch.equal(other["input_ids"], expected["input_ids"])


def test_sd2s_last_layer_is_left_out(work, tmp_path):
    """SD 2.x takes the states before OpenCLIP's last layer; its files hold that layer all the same."""
    state = load_file(work / "sd21.safetensors")
    prefix = "cond_stage_model.model.transformer.resblocks."
    last = max(int(key.split(".")[4]) for key in state if key.startswith(prefix))
    more = {key.replace(f"resblocks.{last}.", f"resblocks.{last + 1}."): value.clone() for key, value in state.items()
            if key.startswith(f"{prefix}{last}.")}
    save_file({**state, **more, "cond_stage_model.model.text_projection": torch.zeros(64, 64)}, tmp_path / "more.safetensors")
    found, _, _ = run_probe(tmp_path / "more.safetensors", tmp_path / "out.safetensors", work / "sd21")
    expected, _, _ = run_probe(work / "sd21", tmp_path / "folder.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_vae_in_one_file_replaces_the_bases_own(work, tmp_path):
    vae = {key.removeprefix("first_stage_model."): value for key, value in load_file(work / "sd15.safetensors").items()
           if key.startswith("first_stage_model.")}
    save_file({**vae, "loss.logvar": torch.zeros(1)}, tmp_path / "vae.safetensors")
    whole, _, first_hash = run_probe(work / "sd15", tmp_path / "out.safetensors")
    found, _, second_hash = run_probe(work / "sd15", tmp_path / "out.safetensors", vae=tmp_path / "vae.safetensors")
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    assert first_hash != second_hash


def test_without_its_configs_a_file_must_have_the_published_sizes(work, tmp_path):
    said = run_probe(work / "sd15.safetensors", tmp_path / "x", "", VOCABULARY, code=65)
    assert "sd15.safetensors: " in said and "misshapen" in said


@pytest.mark.parametrize("change, code, words", [
    (lambda state: state.pop("model.diffusion_model.input_blocks.1.0.in_layers.0.weight"), 65, ["missing", "down_blocks.0.resnets.0.norm1.weight"]),
    (lambda state: state.update({"model.diffusion_model.input_blocks.1.5.odd": torch.zeros(1)}), 65, ["unexpected", "input_blocks.1.5.odd"]),
    (lambda state: state.update({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)}), 2, ["9 channels"]),
    (lambda state: [state.pop(key) for key in list(state) if key.startswith("cond_stage_model")], 2, ["no UNet and text encoder"]),
])
def test_a_file_of_another_kind_is_refused_by_name(work, tmp_path, change, code, words):
    state = load_file(work / "sd15.safetensors")
    change(state)
    save_file(state, tmp_path / "other.safetensors")
    said = run_probe(tmp_path / "other.safetensors", tmp_path / "x", work / "sd15", code=code)
    assert all(word in said for word in ["other.safetensors", *words]), said


def test_playgrounds_numbers_must_fit_its_latents(work, tmp_path):
    state = load_file(work / "sdxl.safetensors")
    save_file(state | {"edm_mean": torch.zeros(3), "edm_std": torch.ones(4)}, tmp_path / "playground.safetensors")
    said = run_probe(tmp_path / "playground.safetensors", tmp_path / "x", "", VOCABULARY, code=65)
    assert "'edm_mean' has 3 numbers, expected 4" in said


def test_what_is_missing_is_said_with_the_remedy(work, tmp_path):
    assert "model.tokenizer_name" in run_probe(work / "sd15.safetensors", tmp_path / "x", code=2)
    assert "no such file" in run_probe(tmp_path / "absent.safetensors", tmp_path / "x", code=2)
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    assert "safetensors" in run_probe(tmp_path / "model.ckpt", tmp_path / "x", code=2)


def test_inspect_names_the_family(work):
    for family, name in zip(FAMILIES, ("SD 1.x", "SD 2.x", "SDXL")):
        done = subprocess.run([LORASHARD, "inspect", work / f"{family}.safetensors"], capture_output=True, text=True, check=True)
        assert f"family: {name}" in done.stderr
