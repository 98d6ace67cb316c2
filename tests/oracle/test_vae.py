"""AutoencoderKL against diffusers': moments, sampled latents and decoded pictures to a relative error of 1e-5."""

import os
import subprocess

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "conditioning_probe")

# name: (config, [height, width])
VAES = {
    "tiny": (dict(block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8), (64, 64)),
    "sd": (dict(block_out_channels=(32, 64, 128, 128), layers_per_block=2, norm_num_groups=32), (128, 64)),
    "one_level": (dict(block_out_channels=(32,), layers_per_block=1, norm_num_groups=16, latent_channels=8), (16, 24)),
}


def make_vae(kind):
    torch.manual_seed(11)
    config, _ = VAES[kind]
    levels = len(config["block_out_channels"])
    vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
                        **config).eval()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return vae


def run_probe(folder, weights, tensors):
    save_file(tensors, folder / "in.safetensors")
    subprocess.run([PROBE, "vae", folder / "config.json", weights, folder / "in.safetensors",
                    folder / "out.safetensors"], check=True)
    return load_file(folder / "out.safetensors")


def inputs(vae, kind):
    generator = torch.Generator().manual_seed(13)
    height, width = VAES[kind][1]
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    latent_shape = (2, vae.config.latent_channels, height // scale, width // scale)
    return {"pixel_values": torch.rand(2, 3, height, width, generator=generator) * 2 - 1,
            "vae_noise": torch.randn(latent_shape, generator=generator),
            "latents": torch.randn(latent_shape, generator=generator)}


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("kind", VAES)
@torch.no_grad()
def test_equals_diffusers(tmp_path, kind):
    vae = make_vae(kind)
    vae.save_pretrained(tmp_path)
    tensors = inputs(vae, kind)
    out = run_probe(tmp_path, tmp_path / "diffusion_pytorch_model.safetensors", tensors)

    distribution = vae.encode(tensors["pixel_values"]).latent_dist
    errors = {
        "moments": relative_error(out["moments"], distribution.parameters),
        "sampled": relative_error(out["sampled"], distribution.mean + distribution.std * tensors["vae_noise"]),
        "decoded": relative_error(out["decoded"], vae.decode(tensors["latents"]).sample),
    }
    print(kind, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-5


@pytest.mark.parametrize("as_convolutions", [False, True], ids=["linear", "1x1_convolution"])
def test_old_keys_give_the_same_bits(tmp_path, as_convolutions):
    vae = make_vae("sd")
    vae.save_pretrained(tmp_path)
    weights = tmp_path / "diffusion_pytorch_model.safetensors"
    old_names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old, renamed = {}, 0
    for key, value in load_file(weights).items():
        for new_name, old_name in old_names.items():
            if f".attentions.0.{new_name}." in key:
                key = key.replace(new_name, old_name)
                renamed += 1
                if as_convolutions and key.endswith("weight"):
                    value = value[:, :, None, None]
        old[key] = value.contiguous()
    assert renamed == 16
    save_file(old, tmp_path / "old.safetensors")
    reference = AutoencoderKL.from_config(vae.config)
    tensors = inputs(reference, "sd")
    expected = run_probe(tmp_path, weights, tensors)
    for name, value in run_probe(tmp_path, tmp_path / "old.safetensors", tensors).items():
        assert torch.equal(value, expected[name]), name


def test_a_key_in_both_spellings_is_refused(tmp_path):
    vae = make_vae("one_level")
    vae.save_pretrained(tmp_path)
    state = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    twice = "encoder.mid_block.attentions.0.query.weight"
    state[twice] = torch.zeros(32, 32)
    save_file(state, tmp_path / "both.safetensors")
    save_file(inputs(vae, "one_level"), tmp_path / "in.safetensors")
    probe = subprocess.run([PROBE, "vae", tmp_path / "config.json", tmp_path / "both.safetensors",
                            tmp_path / "in.safetensors", tmp_path / "out.safetensors"], capture_output=True, text=True)
    assert probe.returncode != 0 and twice in probe.stderr
