"""DDPMScheduler against diffusers': the schedule bit for bit, what is made with it to 1e-6."""

import json
import os
import subprocess

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "conditioning_probe")

SCHEDULES = [
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "epsilon"},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction"},
    {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "sample"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon"},
    {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "epsilon", "num_train_timesteps": 333},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction",
     "rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_equals_diffusers(tmp_path, schedule, dtype):
    scheduler = DDPMScheduler(**schedule)
    scheduler.save_pretrained(tmp_path)
    config = tmp_path / "scheduler_config.json"
    assert json.loads(config.read_text())["beta_schedule"] == schedule["beta_schedule"]

    steps = scheduler.config.num_train_timesteps
    generator = torch.Generator().manual_seed(7)
    timesteps = torch.cat([torch.tensor([0, steps - 1]), torch.randint(0, steps, (30,), generator=generator)])
    latents = torch.randn(32, 4, 8, 8, generator=generator).to(dtype)
    noise = torch.randn(32, 4, 8, 8, generator=generator).to(dtype)
    save_file({"latents": latents, "noise": noise, "timesteps": timesteps}, tmp_path / "in.safetensors")
    subprocess.run([PROBE, "ddpm", config, "-", tmp_path / "in.safetensors", tmp_path / "out.safetensors"], check=True)
    out = load_file(tmp_path / "out.safetensors")

    velocity = scheduler.get_velocity(latents, noise, timesteps)
    target = {"epsilon": noise, "v_prediction": velocity, "sample": latents}[schedule["prediction_type"]]
    assert torch.equal(out["alphas_cumprod"], scheduler.alphas_cumprod)
    for name, expected in {"noisy_latents": scheduler.add_noise(latents, noise, timesteps), "velocity": velocity,
                           "target": target, "snr": compute_snr(scheduler, timesteps)}.items():
        assert out[name].dtype == expected.dtype
        torch.testing.assert_close(out[name], expected, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
