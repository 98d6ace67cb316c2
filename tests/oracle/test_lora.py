"""LoRA: gradients against peft 0.21.2, files against diffusers 0.42.1's saver and loader."""

import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import lora_reference
from unet_cases import forward, make_inputs, make_unet, relative_error, run_probe

ATTENTION = ["to_k", "to_q", "to_v", "to_out.0"]
EVERYTHING = ATTENTION + ["ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "time_emb_proj", "linear_1"]

CONVOLUTIONS = ["conv1", "conv2", "conv_shortcut", "conv"]  # of resnets, and of down- and upsamplers

# name, targets, rank, alpha, options beyond (as unet_probe has them)
CASES = {
    "sd15": ("sd15", ATTENTION, 4, 4, {}),
    "sd21": ("sd21", ATTENTION, 3, 7.5, {}),
    "sd21 everything": ("sd21", EVERYTHING, 4, 2, {}),
    "deeper": ("deeper", ["to_q", "ff.net.2"], 8, 8, {}),
    "convolutions": ("sd15", ATTENTION + CONVOLUTIONS + ["proj_in", "proj_out"], 4, 2, {}),
    "rslora": ("sd15", ["to_q", "conv1"], 4, 4, {"rslora": 1}),
    "ranks": ("sd15", ATTENTION, 4, 4, {"rank_pattern": "attn1.to_q=8,to_v=2"}),
    "dora": ("sd21", EVERYTHING, 4, 2, {"dora": 1}),
    "dora of convolutions": ("sd15", ["to_q"] + CONVOLUTIONS + ["proj_in"], 4, 4, {"dora": 1}),
    "dropout": ("sd15", ATTENTION + ["conv1", "time_emb_proj", "proj_in"], 4, 4, {"dropout": 0.25}),
    "dora and dropout": ("sd15", ATTENTION + ["conv2"], 4, 4, {"dora": 1, "dropout": 0.25}),
    "rank and module dropout": ("sd15", ATTENTION + ["conv1", "time_emb_proj", "proj_in"], 4, 4,
                                {"rank_dropout": 0.25, "module_dropout": 0.25, "rank_pattern": "attn1.to_q=7"}),
    "sdxl": ("sdxl", ATTENTION, 4, 4, {}),
}
LOADABLE = [case for case in CASES if "dropout" not in case]  # dropped forwards are compared with dropped ones only


def naming(key):
    """The key in peft's words, whichever words it has."""
    return key.replace(".lora.down.", ".lora_A.").replace(".lora.up.", ".lora_B.")


def peft_keys(unet, of=lambda parameter: parameter):
    """"unet.<path>.lora_A.weight" -> what `of` says of the parameter."""
    shorten = lambda name: name.replace("lora_magnitude_vector.default.weight", "lora_magnitude_vector").replace(
        ".default.weight", ".weight")
    return {"unet." + shorten(name): of(p) for name, p in unet.named_parameters() if "lora_" in name}


class Adapted:
    """A UNet of diffusers with a peft adapter, and what unet_probe makes of the same."""

    def __init__(self, folder, case):
        self.name, self.targets, self.rank, self.alpha, self.options = CASES[case]
        self.folder, self.unet = folder, make_unet(self.name)
        self.unet.save_pretrained(folder / "unet")
        self.unet.add_adapter(
            LoraConfig(r=self.rank, lora_alpha=self.alpha, init_lora_weights="gaussian", target_modules=self.targets,
                       use_dora=bool(self.options.get("dora")), use_rslora=bool(self.options.get("rslora")),
                       rank_pattern=self.rank_pattern())
        )
        torch.manual_seed(2)
        for name, parameter in self.unet.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data *= 1 + 0.2 * torch.randn_like(parameter)
            elif parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        if "dropout" in self.options:
            for dropout in lora_reference.put_dropout([self.unet], 1, self.options["dropout"]):
                dropout.rows = [(0, False), (1, False)]
        if "rank_dropout" in self.options:
            for dropout in lora_reference.put_rank_dropout([self.unet], 1, self.options["rank_dropout"], self.options["module_dropout"]):
                dropout.rows = [(0, False), (1, False)]
        self.inputs = make_inputs(self.unet)
        self.inputs["target"] = torch.randn_like(self.inputs["sample"])
        self.save_folded(folder / "lora.safetensors")
        self.found, self.out = run_probe(
            folder, self.inputs, targets=",".join(self.targets), rank=self.rank, alpha=self.alpha,
            lora=folder / "lora.safetensors", threads=2, **self.options,
        )

    def rank_pattern(self):
        pairs = [pair.split("=") for pair in self.options.get("rank_pattern", "").split(",") if pair]
        return {name: int(rank) for name, rank in pairs}

    def scale(self, rank):
        return self.alpha / (rank ** 0.5 if self.options.get("rslora") else rank)

    def save_folded(self, path):
        """The adapter as lorashard's own files have it: alpha / rank in up, one naming."""
        keys = peft_keys(self.unet, lambda parameter: parameter.detach())
        if set(self.targets) <= set(ATTENTION):
            keys = {k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): v for k, v in keys.items()}
        up = ("lora_B.weight", "lora.up.weight")
        save_file({k: (v * self.scale(v.shape[1]) if k.endswith(up) else v).contiguous() for k, v in keys.items()}, path)

    def forward(self):
        return forward(self.unet, self.inputs)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    made = {}

    def get(case):
        if case not in made:
            made[case] = Adapted(tmp_path_factory.mktemp("lora"), case)
        return made[case]

    return get


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_peft(adapted, case):
    model = adapted(case)
    output = model.forward()
    torch.nn.functional.mse_loss(output, model.inputs["target"]).backward()
    expected = peft_keys(model.unet, lambda parameter: parameter.grad)
    found = {naming(key[len("grad/"):]): value for key, value in model.found.items() if key.startswith("grad/")}
    found = {key: value.reshape(expected[key].shape) for key, value in found.items()}  # magnitudes: [out] for [1, out, 1, 1]
    assert sorted(found) == sorted(expected)
    whole = relative_error(*(torch.cat([of[key].flatten() for key in sorted(expected)]) for of in (found, expected)))
    # One token attends to itself with probability 1: to_q and to_k of the middle block have no gradient, but rounding.
    floor = 1e-5 * torch.cat([value.flatten() for value in expected.values()]).norm()
    worst = max(((found[key] - expected[key]).norm() / max(expected[key].norm(), floor)).item() for key in expected)
    print(f"{case}: output {relative_error(model.found['output'], output):.2e}, gradient {whole:.2e}, worst key {worst:.2e}")
    assert relative_error(model.found["output"], output.detach()) <= 1e-5
    assert whole <= 5e-6
    assert worst <= 5e-5


@pytest.mark.parametrize("case", CASES)
def test_modules_come_in_the_order_of_diffusers(adapted, case):
    model = adapted(case)
    expected = [name for name, module in model.unet.named_modules() if hasattr(module, "lora_A")]
    assert (model.out / "lora_modules.txt").read_text().split() == expected


@pytest.mark.parametrize("case", ["sd15", "sd21"])
def test_keys_are_those_save_lora_weights_writes(adapted, case, tmp_path):
    model = adapted(case)
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(model.unet))
    StableDiffusionPipeline.save_lora_weights(tmp_path, unet_lora_layers=layers)
    expected = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    found = load_file(model.out / "pytorch_lora_weights.safetensors")
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}


@pytest.mark.parametrize("case", CASES)
def test_what_was_loaded_is_exported_again(adapted, case):
    model = adapted(case)
    expected = load_file(model.folder / "lora.safetensors")
    found = load_file(model.out / "pytorch_lora_weights.safetensors")
    assert sorted(found) == sorted(expected)
    for key in expected:
        assert relative_error(found[key], expected[key]) <= 1e-7, key


@pytest.mark.parametrize("case", LOADABLE)
def test_diffusers_loads_the_export_and_computes_the_same(adapted, case, caplog):
    model = adapted(case)
    unet = make_unet(model.name)
    pipeline = StableDiffusionPipeline(
        vae=None, text_encoder=None, tokenizer=None, unet=unet, scheduler=None, safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )
    for name in ("diffusers", "peft"):
        logging.getLogger(name).propagate = True
    with caplog.at_level(logging.WARNING):
        pipeline.load_lora_weights(model.out)
    # That there is nothing for the text encoder is said for every such file.
    said = [r.getMessage() for r in caplog.records if "No LoRA keys associated to NoneType" not in r.getMessage()]
    assert not [message for message in said if "key" in message.lower()], said
    inputs = model.inputs
    with torch.no_grad():
        expected = forward(unet, inputs)
    error = relative_error(model.found["output"], expected)
    print(f"{case}: relative error after loading {error:.2e}")
    assert error <= 1e-5


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_first_values(tmp_path, init):
    unet = make_unet("sd15")
    unet.save_pretrained(tmp_path / "unet")
    found, out = run_probe(tmp_path, make_inputs(unet), targets="to_q,conv1", rank=4, init=init, dora=1)
    weights = dict(unet.named_parameters())
    for position, path in enumerate((out / "lora_modules.txt").read_text().split()):
        down, up, magnitude = (found[f"init/unet.{path}.{part}"] for part in ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector"))
        assert relative_error(down, lora_reference.first_down(init, 1, position, tuple(down.shape))) <= 1e-7
        assert not up.any()
        assert relative_error(magnitude.flatten(), weights[path + ".weight"].flatten(1).norm(dim=1)) <= 1e-6
