"""CLIPTextModel against transformers', for the shapes of SD 1.5, SD 2.1 and SDXL's second encoder: relative error 1e-5."""

import os
import subprocess

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "conditioning_probe")
BOS, EOS, LENGTH = 49406, 49407, 77

# name: (class, config, id that pads)
ENCODERS = {
    "sd15": (CLIPTextModel, dict(hidden_act="quick_gelu", num_hidden_layers=12, eos_token_id=2), EOS),
    "sd21": (CLIPTextModel, dict(hidden_act="gelu", num_hidden_layers=23, eos_token_id=2), 0),
    "sdxl_2": (CLIPTextModelWithProjection, dict(hidden_act="gelu", num_hidden_layers=6, eos_token_id=EOS), 0),
}


def make_encoder(kind):
    cls, settings, _ = ENCODERS[kind]
    torch.manual_seed(3)
    model = cls(CLIPTextConfig(hidden_size=64, intermediate_size=256, num_attention_heads=4, projection_dim=48,
                               bos_token_id=BOS, **settings)).eval()
    # transformers' initial weights are so small that attention is nearly uniform: draw weights that make it matter.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(torch.randn_like(parameter) / (1 if "embedding" in name else parameter.shape[1] ** 0.5))
    return model


def padded_texts(pad):
    """Texts of 0, 5 and 40 tokens, one cut at 75, and one with <|endoftext|> twice before the padding."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for tokens in (0, 5, 40, 75, 6):
        ids = [BOS, *torch.randint(1, 40000, (tokens,), generator=generator).tolist(), EOS]
        if tokens == 6:
            ids[4] = EOS
        rows.append(ids + [pad] * (LENGTH - len(ids)))
    return torch.tensor(rows)


def run_probe(folder, weights, input_ids, clip_skip=0):
    save_file({"input_ids": input_ids}, folder / "in.safetensors", metadata={"clip_skip": str(clip_skip)})
    subprocess.run([PROBE, "clip", folder / "config.json", weights, folder / "in.safetensors",
                    folder / "out.safetensors"], check=True)
    return load_file(folder / "out.safetensors")


def relative_error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("clip_skip", [0, 1, 4])
@pytest.mark.parametrize("kind", ENCODERS)
@torch.no_grad()
def test_equals_transformers(tmp_path, kind, clip_skip):
    model = make_encoder(kind)
    model.save_pretrained(tmp_path)
    input_ids = padded_texts(ENCODERS[kind][2])
    out = run_probe(tmp_path, tmp_path / "model.safetensors", input_ids, clip_skip)

    expected = model(input_ids, output_hidden_states=True)
    pooled = expected.text_embeds if kind == "sdxl_2" else expected.pooler_output
    # encode_prompt() of StableDiffusionPipeline and of StableDiffusionXLPipeline.
    final_layer_norm = getattr(model, "text_model", model).final_layer_norm  # transformers 5 dropped a level
    last = final_layer_norm(expected.hidden_states[-(clip_skip + 1)]) if clip_skip else expected.last_hidden_state
    errors = {
        "last_hidden_state": relative_error(out["last_hidden_state"], last),
        "penultimate_hidden_state": relative_error(out["penultimate_hidden_state"], expected.hidden_states[-(clip_skip + 2)]),
        "pooled": relative_error(out["pooled"], pooled),
    }
    print(kind, clip_skip, {name: f"{error:.1e}" for name, error in errors.items()})
    assert max(errors.values()) <= 1e-5


@pytest.mark.parametrize("kind", ENCODERS)
def test_both_spellings_of_the_keys_give_the_same_bits(tmp_path, kind):
    make_encoder(kind).save_pretrained(tmp_path)
    input_ids = padded_texts(0)
    state = {key.removeprefix("text_model."): value
             for key, value in load_file(tmp_path / "model.safetensors").items()}
    with_prefix = {key if key.startswith("text_projection") else "text_model." + key: value
                   for key, value in state.items()}
    with_prefix["text_model.embeddings.position_ids"] = torch.arange(LENGTH)[None]
    save_file(state, tmp_path / "without.safetensors")
    save_file(with_prefix, tmp_path / "with.safetensors")
    without = run_probe(tmp_path, tmp_path / "without.safetensors", input_ids)
    for name, value in run_probe(tmp_path, tmp_path / "with.safetensors", input_ids).items():
        assert torch.equal(value, without[name]), name
