"""The arithmetic of a run on two ranks, against diffusers, peft and torch: SD 1.5's shape (epsilon), SD 2.1's (velocity) and
SDXL's (two text encoders, time ids, three ranks)."""

import os
import sys

import pytest
import torch

from lorashard_runs import REPO, lorashard, make_base, make_pack, make_pictures, make_playground, write_recipe

sys.path.insert(0, os.path.join(REPO, "tests", "oracle"))
from replay import Replay  # noqa: E402

STEPS = 10
LORA = {
    "tiny-sd15": {},
    "tiny-sd21": {"lora__rank": 8, "lora__lora_alpha": 4.0},
    "tiny-sdxl": {},
}
RANKS = {"tiny-sd15": 2, "tiny-sd21": 2, "tiny-sdxl": 3}


@pytest.mark.parametrize("preset", LORA)
def test_every_step_equals_diffusers(tmp_path, preset):
    make_base(tmp_path / "base", preset)
    make_pack(tmp_path / "pack", make_pictures(tmp_path / "pictures"))
    # Four micro-batches of two pictures a step: two on each of two ranks; 2, 1 and 1 on three. The limit of the norm is low enough to clip.
    recipe = write_recipe(
        tmp_path / "recipe.toml", tmp_path / "base", tmp_path / "pack", tmp_path / "run", train__train_batch_size=2,
        train__total_batch_size=8, train__max_train_steps=STEPS, train__max_grad_norm=0.02, debug__trace_steps=STEPS,
        lr_scheduler__lr_scheduler="cosine", lr_scheduler__lr_warmup_steps=3, checkpoint__checkpointing_steps=100,
        **LORA[preset])
    lorashard("launch", recipe, "--ranks", RANKS[preset])

    replay = Replay(tmp_path / "run")
    errors = replay.replay()
    print(f"\n{preset}, {len(replay.steps)} steps, {len(replay.keys)} LoRA tensors\n{errors.table()}")
    assert replay.steps == list(range(STEPS))
    assert replay.scheduler.config.prediction_type == ("v_prediction" if preset == "tiny-sd21" else "epsilon")
    assert not errors.outside(), errors.table()
    norms = [replay.trace[f"step{step}/grad_norm"].item() for step in replay.steps]
    assert min(norms) > 0.02, f"the gradient was not clipped: {norms}"


# Every option of noise, timesteps, loss and captions at least once; what can be together is together.
OPTIONS = {
    "min_snr": ("tiny-sd15", {"train__snr_gamma": 0.5, "train__noise_offset": 0.1, "train__input_perturbation": 0.1,
                              "captions__shuffle_caption": True, "captions__keep_tokens": 1, "timesteps__min_timestep": 100}),
    "zero_snr": ("tiny-sd21", {"model__rescale_betas_zero_snr": True, "train__snr_gamma": 1.0,
                               "timesteps__timestep_bias_strategy": "later", "timesteps__timestep_bias_multiplier": 50.0,
                               "timesteps__timestep_bias_portion": 0.002, "captions__caption_dropout_rate": 0.5}),
    "huber": ("tiny-sd15", {"model__clip_skip": 1, "loss__loss_type": "huber", "loss__debiased_estimation_loss": True,
                            "train__noise_offset": 0.2, "noise__adaptive_noise_scale": -0.05,
                            "noise__noise_offset_random_strength": True, "train__input_perturbation": 0.2,
                            "noise__input_perturbation_random_strength": True}),
    "smooth_l1": ("tiny-sd21", {"loss__loss_type": "smooth_l1", "loss__huber_schedule": "exponential", "loss__huber_scale": 0.5,
                                "loss__scale_v_pred_loss_like_noise_pred": True, "loss__debiased_estimation_loss": True}),
    "l1": ("tiny-sd15", {"loss__loss_type": "l1", "loss__v_pred_like_loss": 0.5, "captions__caption_prefix": "photo, of {a|the} thing,",
                         "captions__enable_wildcard": True, "captions__caption_tag_dropout_rate": 0.3}),
    "edm_epsilon": ("tiny-sd15", {"train__do_edm_style_training": True, "train__noise_offset": 0.05}),
    "edm_velocity": ("tiny-sd21", {"train__do_edm_style_training": True, "model__rescale_betas_zero_snr": True}),
    "constant_huber": ("tiny-sd15", {"loss__loss_type": "huber", "loss__huber_schedule": "constant", "noise__multires_noise_iterations": 6,
                                     "noise__multires_noise_discount": 0.5}),
}


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("options")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    for preset in ("tiny-sd15", "tiny-sd21"):
        make_base(folder / preset, preset)
    return folder


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_of_noise_loss_and_captions_equal_the_scripts(work, name):
    preset, options = OPTIONS[name]
    recipe = write_recipe(work / f"{name}.toml", work / preset, work / "pack", work / name, train__train_batch_size=2,
                          train__total_batch_size=4, train__max_train_steps=3, debug__trace_steps=3, **options)
    lorashard("train", recipe)
    replay = Replay(work / name)
    errors = replay.replay()
    print(f"\n{name}\n{errors.table()}")
    assert not errors.outside(), errors.table()
    changed = 0.0
    for m in range(6):
        micro = {key: replay.trace[f"step{m // 2}/micro{m}/{key}"] for key in ("model_pred", "target", "loss")}
        plain = torch.nn.functional.mse_loss(micro["model_pred"], micro["target"])
        changed = max(changed, ((micro["loss"] - plain).abs() / plain).item())
    assert changed > 1e-3, "the options changed nothing"


@pytest.mark.parametrize("name, options", {
    "text_to_image": {"loss__loss_type": "huber", "loss__huber_schedule": "exponential", "train__noise_offset": 0.05},
    "velocity": {"model__prediction_type": "v_prediction", "train__do_edm_style_training": True, "validation__validation_split": 0.1,
                 "validation__validation_steps": 1},
}.items())
def test_a_base_of_edms_formulation_equals_the_script(tmp_path, name, options):
    base = make_playground(tmp_path / "base")
    make_pack(tmp_path / "pack", make_pictures(tmp_path / "pictures"))
    recipe = write_recipe(tmp_path / "recipe.toml", base, tmp_path / "pack", tmp_path / "run", train__train_batch_size=2,
                          train__total_batch_size=4, train__max_train_steps=3, debug__trace_steps=3, **options)
    lorashard("launch", recipe, "--ranks", 2)
    errors = Replay(tmp_path / "run").replay()
    print(f"\n{name}\n{errors.table()}")
    assert not errors.outside(), errors.table()


# The 16-bit limits of replay.py's HALF_LIMITS; recomputed activations have those of fp32.
@pytest.mark.parametrize("name, options", {
    "gradient_checkpointing": {"train__gradient_checkpointing": True},
    "bf16": {"train__mixed_precision": "bf16"},
    "bf16_and_gradient_checkpointing": {"train__mixed_precision": "bf16", "train__gradient_checkpointing": True},
    "fp16": {"train__mixed_precision": "fp16"},
}.items())
def test_recomputed_and_in_16_bits_every_step_equals_diffusers(work, name, options):
    recipe = write_recipe(work / f"{name}.toml", work / "tiny-sd15", work / "pack", work / name, train__train_batch_size=2,
                          train__total_batch_size=6, train__max_train_steps=3, debug__trace_steps=3, **options)
    lorashard("launch", recipe, "--ranks", 2)
    replay = Replay(work / name)
    errors = replay.replay()
    print(f"\n{name}\n{errors.table()}")
    assert not errors.outside(), errors.table()
