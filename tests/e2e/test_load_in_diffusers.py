"""The exported adapter in diffusers: every key is used, and its UNet answers as lorashard's did with the same weights."""

import logging
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

from lorashard_runs import lorashard, make_base, make_pack, make_pictures, write_recipe

STEPS = 3
ADAPTERS = {
    "attention": {},
    "alpha_is_not_rank": {"lora__rank": 4, "lora__lora_alpha": 10.0},
    "feed_forward_too": {"lora__lora_alpha": 2.0, "lora__target_modules": ["to_q", "to_v", "ff.net.0.proj", "ff.net.2"]},
    "text_encoder_too": {"lora__lora_alpha": 8.0, "lora__train_text_encoder": True},
}


class Records(logging.Handler):
    """Everything diffusers and peft have to say about what they load."""

    def __init__(self):
        super().__init__(logging.INFO)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def said():
    records, loggers = Records(), [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(records)
    yield records.lines
    for logger in loggers:
        logger.removeHandler(records)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load-in-diffusers")
    make_pack(folder / "pack", make_pictures(folder / "pictures"))
    make_base(folder / "tiny-sd15", "tiny-sd15")
    make_base(folder / "tiny-sd21", "tiny-sd21")
    make_base(folder / "tiny-sdxl", "tiny-sdxl")
    return folder


def train(work, name, preset, steps, **overrides):
    recipe = write_recipe(work / f"{name}.toml", work / preset, work / "pack", work / name, train__train_batch_size=2,
                          train__total_batch_size=4, train__max_train_steps=steps, debug__trace_steps=steps,
                          optimizer__learning_rate=0.02, **overrides)
    lorashard("train", recipe)
    return work / name


CASES = [(preset, adapter) for preset in ("tiny-sd15", "tiny-sd21") for adapter in ADAPTERS]
CASES += [("tiny-sdxl", "attention"), ("tiny-sdxl", "feed_forward_too")]


@pytest.mark.parametrize("preset, adapter", CASES)
def test_loads_whole_and_answers_alike(work, said, preset, adapter):
    run = train(work, f"{preset}-{adapter}", preset, STEPS, **ADAPTERS[adapter])
    # One step more of the same run: its last prediction is the UNet's with the weights that `run` exported.
    longer = load_file(train(work, f"{preset}-{adapter}-longer", preset, STEPS + 1, **ADAPTERS[adapter]) / "trace.safetensors")

    pipeline = DiffusionPipeline.from_pretrained(work / preset)
    said.clear()
    pipeline.load_lora_weights(run)
    # Of any file without text encoder layers diffusers says so; nothing else may be said.
    expected = () if adapter == "text_encoder_too" else ("No LoRA keys associated to CLIPTextModel",)
    other = [line for line in said if not line.startswith(expected)]
    assert not other, f"diffusers had something to say: {other}"
    exported = load_file(run / "pytorch_lora_weights.safetensors")
    loaded = [name for model in pipeline.components.values() if isinstance(model, torch.nn.Module)
              for name, _ in model.named_parameters() if ".lora_" in name]
    assert len(loaded) == len(exported) > 0
    # Where the latents are one pixel, self-attention is over one token: its softmax is 1 whatever to_q and to_k say.
    one_token = re.compile(r"mid_block.*attn1\.to_[qk]\.")
    untrained = [key for key, value in exported.items() if not value.any() and not one_token.search(key)]
    assert not untrained, f"an adapter that was not trained proves nothing: {untrained}"

    micro = f"step{STEPS}/micro{2 * STEPS}/"
    def answer():
        ids = longer[micro + "input_ids"]
        if preset != "tiny-sdxl":
            return pipeline.unet(*inputs, pipeline.text_encoder(ids)[0]).sample
        first = pipeline.text_encoder(ids, output_hidden_states=True)
        second = pipeline.text_encoder_2(longer[micro + "input_ids_2"], output_hidden_states=True)
        hidden_states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        added = {"text_embeds": second.text_embeds, "time_ids": longer[micro + "add_time_ids"]}
        return pipeline.unet(*inputs, hidden_states, added_cond_kwargs=added).sample

    inputs = [longer[micro + name] for name in ("noisy_latents", "timesteps")]
    with torch.no_grad():
        with_adapter = answer()
        pipeline.disable_lora()
        without = answer()
    expected = longer[micro + "model_pred"]
    error = ((with_adapter - expected).norm() / expected.norm()).item()
    effect = ((without - expected).norm() / expected.norm()).item()
    print(f"{preset} {adapter}: {len(exported)} tensors, error {error:.1e}, the adapter changes {effect:.1e}")
    assert error <= 1e-5
    assert effect > 1e-3, "the adapter changes too little for its loading to be seen"
