"""The four samplers against diffusers': the same timesteps, and every step's sample to 3e-6 of its norm.

The configs are those that the bases' own scheduler folders have; each scheduler is made from them as diffusers makes it,
X.from_config(pipeline.scheduler.config).
"""

import os
import subprocess

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "sampling_probe")
TOLERANCE = 3e-6
# With zero terminal SNR Euler starts at noise level 4096, and fp32 leaves 3e-5 of the first step to rounding. diffusers raises EDM's
# levels to a power in fp32 for DPM-Solver++, which leaves 2e-6 of each, and its third order extrapolates from them.
TOLERANCES = {("trailing", "euler"): 1e-4, ("edm_dpm", "dpmsolver++"): 1e-5}

CLASSES = {
    "dpmsolver++": diffusers.DPMSolverMultistepScheduler,
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}
SCALED = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
CONFIGS = {
    # As published with SD 1.5, SD 2.1 and SDXL.
    "sd15": diffusers.PNDMScheduler(**SCALED, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1),
    "sd21": diffusers.DDIMScheduler(**SCALED, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                                    prediction_type="v_prediction"),
    "sdxl": diffusers.EulerDiscreteScheduler(**SCALED, timestep_spacing="leading", steps_offset=1),
    # What else files say.
    "defaults": diffusers.DDPMScheduler(),
    "sample": diffusers.DDIMScheduler(**SCALED, prediction_type="sample", clip_sample=True, clip_sample_range=0.8),
    "trailing": diffusers.DDIMScheduler(**SCALED, clip_sample=False, timestep_spacing="trailing",
                                        rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "prk": diffusers.PNDMScheduler(**SCALED, set_alpha_to_one=True, prediction_type="v_prediction"),
    "cosine": diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2", lambda_min_clipped=-5.1,
                                                    solver_order=3),
    "heun": diffusers.DPMSolverMultistepScheduler(**SCALED, solver_type="heun", final_sigmas_type="sigma_min",
                                                  timestep_spacing="trailing", use_karras_sigmas=False),
    "euler_at_final": diffusers.DPMSolverMultistepScheduler(**SCALED, euler_at_final=True, solver_order=3,
                                                            timestep_spacing="leading", use_karras_sigmas=True),
    "unipc": diffusers.UniPCMultistepScheduler(**SCALED, solver_order=3),
    # Playground v2.5's, and what else its formulation allows.
    "edm": diffusers.EDMEulerScheduler(),
    "edm_other": diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=100.0, sigma_data=1.0, sigma_schedule="exponential",
                                             prediction_type="v_prediction", final_sigmas_type="sigma_min"),
    "edm_dpm": diffusers.EDMDPMSolverMultistepScheduler(solver_order=3, solver_type="heun", rho=5.0),
}
EDM_CLASSES = {"dpmsolver++": diffusers.EDMDPMSolverMultistepScheduler, "euler": diffusers.EDMEulerScheduler}
PUBLISHED = ["sd15", "sd21", "sdxl"]
CASES = [(config, name, karras) for config in PUBLISHED for name in CLASSES for karras in (False, True)
         if not karras or name in ("dpmsolver++", "euler")]
CASES += [("defaults", name, False) for name in CLASSES]
CASES += [("sample", name, False) for name in ("dpmsolver++", "ddim", "euler")]
CASES += [("trailing", name, False) for name in CLASSES]
CASES += [("prk", "pndm", False), ("cosine", "dpmsolver++", False),
          ("heun", "dpmsolver++", False), ("edm", "euler", False), ("edm", "dpmsolver++", False), ("edm_other", "euler", False),
          ("edm_other", "dpmsolver++", False), ("edm_dpm", "dpmsolver++", False), ("edm_dpm", "euler", False), ("euler_at_final", "dpmsolver++", False), ("unipc", "dpmsolver++", False)]


def reference(folder, config, name, karras):
    """The scheduler as a script makes it from the one a pipeline has loaded."""
    loaded = type(CONFIGS[config]).from_pretrained(folder)
    classes = EDM_CLASSES if "EDM" in type(loaded).__name__ else CLASSES
    return classes[name].from_config(loaded.config, **({"use_karras_sigmas": True} if karras else {}))


@pytest.mark.parametrize("config,name,karras,steps",
                         [(*case, steps) for case in CASES for steps in ((5, 20, 25) if case[0] in PUBLISHED else (20,))])
def test_equals_diffusers(tmp_path, config, name, karras, steps):
    CONFIGS[config].save_pretrained(tmp_path)
    scheduler = reference(tmp_path, config, name, karras)
    scheduler.set_timesteps(steps)

    generator = torch.Generator().manual_seed(steps)
    calls = len(scheduler.timesteps)
    inputs = {f"model_output/{i}": torch.randn(1, 4, 8, 8, generator=generator) for i in range(calls)}
    inputs["noise"] = torch.randn(1, 4, 8, 8, generator=generator)
    follow = 0.1  # of the input joins the model's output, as a model's does
    save_file(inputs, tmp_path / "in.safetensors",
              metadata={"scheduler": name, "steps": str(steps), "karras": str(int(karras)), "follow": str(follow)})
    subprocess.run([PROBE, "scheduler", tmp_path / "scheduler_config.json", tmp_path / "in.safetensors",
                    tmp_path / "out.safetensors"], check=True)
    out = load_file(tmp_path / "out.safetensors")

    # Of EDM these are logarithms around 0, of powers that EDMDPMSolverMultistepScheduler takes in fp32.
    torch.testing.assert_close(out["timesteps"], scheduler.timesteps.float(), rtol=1e-6, atol=1e-6 if config.startswith("edm") else 0)
    sample = inputs["noise"] * scheduler.init_noise_sigma
    for i, timestep in enumerate(scheduler.timesteps):
        shown = scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(inputs[f"model_output/{i}"] + follow * shown, timestep, sample).prev_sample
        for found, expected in ((out[f"input/{i}"], shown), (out[f"sample/{i}"], sample)):
            assert torch.isfinite(expected).all()
            error = ((found - expected).norm() / expected.norm()).item()
            assert error < TOLERANCES.get((config, name), TOLERANCE), f"step {i} of {calls}: {error}"


REFUSED = {
    "unknown": (CONFIGS["sd15"], "heun", 10, 2, "expected one of dpmsolver++, ddim, euler, pndm"),
    "no_steps": (CONFIGS["sd15"], "ddim", 0, 2, "num_inference_steps is 0"),
    "too_many": (CONFIGS["sd15"], "ddim", 1000, 2, "take fewer steps"),
    "few_for_prk": (diffusers.PNDMScheduler(**SCALED), "pndm", 3, 2, "at least 4 steps"),
    "sample_in_pndm": (CONFIGS["sample"], "pndm", 10, 65, "no prediction_type 'sample'"),
    "exponential_sigmas": (diffusers.EulerDiscreteScheduler(**SCALED, use_exponential_sigmas=True), "euler", 10, 65,
                    "use_exponential_sigmas = true"),
    "ddim_of_edm": (diffusers.EDMEulerScheduler(), "ddim", 10, 2, "EDM"),
    "thresholding": (diffusers.DDIMScheduler(**SCALED, thresholding=True), "ddim", 10, 65, "thresholding = true"),
    "sde": (diffusers.DPMSolverMultistepScheduler(**SCALED, algorithm_type="sde-dpmsolver++"), "dpmsolver++", 10, 65,
            "sde-dpmsolver++"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses(tmp_path, case):
    config, name, steps, code, words = REFUSED[case]
    config.save_pretrained(tmp_path)
    save_file({"noise": torch.zeros(1, 4, 8, 8)}, tmp_path / "in.safetensors",
              metadata={"scheduler": name, "steps": str(steps), "karras": "0", "follow": "0"})
    done = subprocess.run([PROBE, "scheduler", tmp_path / "scheduler_config.json", tmp_path / "in.safetensors",
                           tmp_path / "out.safetensors"], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
