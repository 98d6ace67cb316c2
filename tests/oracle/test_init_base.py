"""Bases of `lorashard init-base` in diffusers, and bases that diffusers saved in lorashard."""
import gzip
import json
import os
import subprocess

import pytest
import safetensors.torch
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

LORASHARD = os.environ["LORASHARD"]
PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "stable_diffusion_probe")
REPO = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
VOCABULARY = os.environ.get("LORASHARD_CLIP_VOCABULARY", os.path.join(REPO, ".venv/share/lorashard/bpe_simple_vocab_16e6.txt.gz"))
PROMPT = "a photo of a cat"
PRESETS = ["tiny-sd15", "tiny-sd21", "tiny-sdxl"]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Each tiny preset with CLIP's vocabulary, and one with single bytes."""
    folder = tmp_path_factory.mktemp("bases")
    for preset in PRESETS:
        subprocess.run([LORASHARD, "init-base", "--preset", preset, "--vocabulary", VOCABULARY, folder / preset], check=True)
    environment = {k: v for k, v in os.environ.items() if k != "LORASHARD_CLIP_VOCABULARY"}
    done = subprocess.run([LORASHARD, "init-base", "--preset", "tiny-sd15", folder / "bytes"], check=True, env=environment,
                          capture_output=True, text=True)
    assert "single bytes" in done.stderr
    return folder


def inputs():
    generator = torch.Generator().manual_seed(5)
    return {"pixel_values": torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1,
            "sample": torch.randn(1, 4, 8, 8, generator=generator), "timesteps": torch.tensor([321]), "time_ids": torch.tensor([[96.0, 70, 3, 0, 64, 64]])}


def run_probe(base, folder, variant=""):
    safetensors.torch.save_file(inputs(), folder / "in.safetensors")
    done = subprocess.run([PROBE, base, variant, PROMPT, folder / "in.safetensors", folder / "out.safetensors"], check=True,
                          capture_output=True, text=True)
    return safetensors.torch.load_file(folder / "out.safetensors"), done.stdout.strip()


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("name", PRESETS + ["bytes"])
def test_diffusers_finds_every_key_and_no_other(name, bases):
    parts = [(UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"), (CLIPTextModel, "text_encoder")]
    if name == "tiny-sdxl":
        parts.append((CLIPTextModelWithProjection, "text_encoder_2"))
    for cls, component in parts:
        _, info = cls.from_pretrained(bases / name / component, output_loading_info=True, local_files_only=True)
        faults = {kind: list(keys) for kind, keys in info.items() if keys}
        assert not faults, (component, faults)


@pytest.mark.parametrize("name", PRESETS + ["bytes"])
def test_the_pipeline_draws_a_picture(name, bases):
    pipeline = DiffusionPipeline.from_pretrained(bases / name, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline(PROMPT, num_inference_steps=2, output_type="np", generator=torch.Generator().manual_seed(0)).images[0]
    assert picture.shape == ((64, 64, 3))
    assert 0.02 < picture.std() < 0.4


@pytest.mark.parametrize("name", PRESETS)
def test_the_tokenizer_gives_clips_ids(name, bases):
    tokenizer = CLIPTokenizer.from_pretrained(bases / name / "tokenizer")
    assert tokenizer(PROMPT).input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert tokenizer.model_max_length == 77
    padded = tokenizer(PROMPT, padding="max_length").input_ids
    assert len(padded) == 77
    assert set(padded[7:]) == {0 if name == "tiny-sd21" else 49407}
    if name == "tiny-sdxl":
        second = CLIPTokenizer.from_pretrained(bases / name / "tokenizer_2")(PROMPT, padding="max_length").input_ids
        assert second[:7] == padded[:7] and set(second[7:]) == {0}


def test_the_vocabulary_is_openais(bases):
    """Built again as OpenAI's simple_tokenizer.py does."""
    merges = gzip.open(VOCABULARY).read().decode().split("\n")[1:49152 - 256 - 2 + 1]
    bs = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    cs = bs + [256 + n for n in range(256 - len(bs))]
    tokens = [chr(c) for c in cs]
    tokens += [t + "</w>" for t in tokens] + ["".join(m.split()) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder = bases / "tiny-sd15" / "tokenizer"
    assert json.loads((folder / "vocab.json").read_text()) == {t: i for i, t in enumerate(tokens)}
    assert (folder / "merges.txt").read_text(encoding="utf-8").split("\n") == ["#version: 0.2", *merges, ""]


@pytest.mark.parametrize("name", PRESETS)
def test_no_output_layer_is_dead(name, bases):
    for component in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if name == "tiny-sdxl" else [])):
        stem = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
        for key, tensor in safetensors.torch.load_file(bases / name / component / f"{stem}.safetensors").items():
            assert torch.isfinite(tensor).all(), key
            if key.endswith("weight"):
                assert tensor.abs().max() > 0, key


@pytest.mark.parametrize("name", PRESETS + ["bytes"])
def test_lorashard_computes_what_diffusers_computes(name, bases, tmp_path):
    found, _ = run_probe(bases / name, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(bases / name, local_files_only=True)
    given, added = inputs(), {}
    with torch.no_grad():
        input_ids = pipeline.tokenizer(PROMPT, padding="max_length", return_tensors="pt").input_ids
        hidden = pipeline.text_encoder(input_ids)[0]
        if name == "tiny-sdxl":
            hidden, _, pooled, _ = pipeline.encode_prompt(PROMPT, do_classifier_free_guidance=False)
            added = {"text_embeds": pooled, "time_ids": given["time_ids"]}
            assert relative_error(found["pooled_prompt_embeds"], pooled) < 1e-5
        moments = pipeline.vae.encode(given["pixel_values"]).latent_dist.parameters
        model_pred = pipeline.unet(given["sample"], given["timesteps"], hidden, added_cond_kwargs=added).sample
    scheduler = DDPMScheduler.from_pretrained(bases / name, subfolder="scheduler")
    assert torch.equal(found["input_ids"], input_ids)
    assert relative_error(found["encoder_hidden_states"], hidden) < 1e-5
    assert relative_error(found["moments"], moments) < 1e-5
    assert relative_error(found["model_pred"], model_pred) < 1e-5
    assert relative_error(found["alphas_cumprod"], scheduler.alphas_cumprod) < 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_a_base_that_diffusers_saved_again_is_the_same_model(name, bases, tmp_path):
    expected, first_hash = run_probe(bases / name, tmp_path)
    pipeline = DiffusionPipeline.from_pretrained(bases / name, local_files_only=True)
    pipeline.save_pretrained(tmp_path / "whole")
    pipeline.save_pretrained(tmp_path / "sharded", max_shard_size="4MB")
    pipeline.save_pretrained(tmp_path / "sharded_fp16", max_shard_size="4MB", variant="fp16")
    shards = list((tmp_path / "sharded" / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    for folder, variant in (("whole", ""), ("sharded", ""), ("sharded_fp16", "fp16")):
        found, second_hash = run_probe(tmp_path / folder, tmp_path, variant)
        assert second_hash != first_hash  # other files, another identity
        for key, tensor in expected.items():
            # Not bit for bit: kernels round by where in memory a weight begins, which is where it lies in its file.
            assert relative_error(found[key].double(), tensor.double()) < 1e-5, (folder, key)


def test_the_fp16_variant_is_read_as_fp32(bases, tmp_path):
    expected, _ = run_probe(bases / "tiny-sd15", tmp_path)
    StableDiffusionPipeline.from_pretrained(bases / "tiny-sd15", local_files_only=True).to(torch.float16).save_pretrained(
        tmp_path / "half", variant="fp16")
    found, _ = run_probe(tmp_path / "half", tmp_path, "fp16")
    assert found["model_pred"].dtype == torch.float32
    assert relative_error(found["model_pred"], expected["model_pred"]) < 2e-3
    done = subprocess.run([PROBE, tmp_path / "half", "", PROMPT, tmp_path / "in.safetensors", tmp_path / "x"], capture_output=True, text=True)
    assert done.returncode == 2 and 'variant = "fp16"' in done.stderr


def test_the_command_refuses_a_folder_with_something_in_it(bases):
    done = subprocess.run([LORASHARD, "init-base", "--preset", "tiny-sd15", bases / "bytes"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "isn't an empty folder" in done.stderr
    done = subprocess.run([LORASHARD, "init-base", "--preset", "sd3", bases / "new"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "tiny-sd15" in done.stderr
