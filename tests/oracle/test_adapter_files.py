"""Adapter files: read in every spelling, LyCORIS' kinds against lycoris-lora 4.1, what is written against diffusers and peft."""

import json
import logging
import os
import subprocess

import pytest
import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import adapter_cases as cases

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "adapter_probe")


def run(*arguments, code=0):
    done = subprocess.run([*map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done


def lorashard(*arguments, code=0):
    return run(os.environ["LORASHARD"], *arguments, code=code)


def deltas(folder, adapter, layers):
    """What adapter_probe says `adapter` adds to each of `layers`."""
    save_file({f"{c}.{p}": w.detach().contiguous() for (c, p), w in layers.items()}, folder / "weights.safetensors")
    run(PROBE, "deltas", adapter, folder / "weights.safetensors", folder / "deltas.safetensors")
    return load_file(folder / "deltas.safetensors")


def assert_close(found, expected, tolerance=2e-6):
    assert found.shape == expected.shape
    error = (found.double() - expected.double()).norm() / expected.double().norm()
    assert error <= tolerance, error


def assert_means(folder, adapter, layers, pairs, tolerance=2e-6):
    found = deltas(folder, adapter, layers)
    assert found.keys() == {f"{c}.{p}" for c, p in pairs}
    for (component, path), pair in pairs.items():
        assert_close(found[f"{component}.{path}"], cases.delta(pair, cases.ALPHA / cases.RANK), tolerance)


@pytest.fixture(scope="module")
def sd15():
    layers = cases.layers_of(cases.make_pipeline("sd15"), cases.ATTENTION)
    return layers, cases.make_pairs(layers)


@pytest.fixture(scope="module")
def sdxl():
    layers = cases.layers_of(cases.make_pipeline("sdxl"), cases.ATTENTION)
    return layers, cases.make_pairs(layers)


# ---- reading

@pytest.mark.parametrize("spelling", cases.SPELLINGS)
def test_every_spelling_means_the_same(sd15, tmp_path, spelling):
    layers, pairs = sd15
    save_file(cases.SPELLINGS[spelling](pairs), tmp_path / "adapter.safetensors")
    assert_means(tmp_path, tmp_path / "adapter.safetensors", layers, pairs)


def test_convolutions_in_mixed_files(tmp_path):
    layers = cases.layers_of(cases.make_pipeline("sd15"), cases.EVERYTHING)
    pairs = cases.make_pairs(layers)
    save_file(cases.SPELLINGS["mixed"](pairs), tmp_path / "adapter.safetensors")
    assert_means(tmp_path, tmp_path / "adapter.safetensors", layers, pairs)


def test_peft_folders(sd15, tmp_path):
    layers, pairs = sd15
    cases.write_peft(tmp_path / "peft", pairs)
    assert_means(tmp_path, tmp_path / "peft", layers, pairs)


def test_peft_patterns_and_rslora(sd15, tmp_path):
    layers, pairs = sd15
    pairs = {key: pair for key, pair in pairs.items() if key[0] == "unet"}
    cases.write_peft(tmp_path / "peft", pairs)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2.0, "use_rslora": True, "alpha_pattern": {r"mid_block\..*to_q": 10.0}}
    (tmp_path / "peft" / "unet" / "adapter_config.json").write_text(json.dumps(config))
    found = deltas(tmp_path, tmp_path / "peft" / "unet", layers)
    for (_, path), pair in pairs.items():
        alpha = 10.0 if path.startswith("mid_block") and path.endswith("to_q") else 2.0
        assert_close(found["unet." + path], cases.delta(pair, alpha / 2))


def test_alpha_in_the_metadata_of_a_diffusers_file(sd15, tmp_path):
    layers, pairs = sd15
    state = {key: value for key, value in cases.SPELLINGS["kohya"](pairs).items() if not key.endswith(".alpha")}
    metadata = {f"{part}.{key}": value for part in ("unet", "text_encoder") for key, value in
                (("r", cases.RANK), ("lora_alpha", cases.ALPHA), ("use_rslora", False))}
    save_file(state, tmp_path / "adapter.safetensors", metadata={"format": "pt", "lora_adapter_metadata": json.dumps(metadata)})
    assert_means(tmp_path, tmp_path / "adapter.safetensors", layers, pairs)


def test_torch_pickles_are_read_without_python(sd15, tmp_path):
    layers, pairs = sd15
    torch.save(cases.SPELLINGS["diffusers"](pairs), tmp_path / "pytorch_lora_weights.bin")
    assert_means(tmp_path, tmp_path / "pytorch_lora_weights.bin", layers, pairs)


class Evil:
    def __reduce__(self):
        return os.mkdir, (os.environ["EVIL_FOLDER"],)


def test_a_pickle_that_wants_a_call_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("EVIL_FOLDER", str(tmp_path / "was-called"))
    torch.save({"unet.x": Evil()}, tmp_path / "adapter.bin")
    said = lorashard("inspect", tmp_path / "adapter.bin", code=65).stderr
    assert "adapter.bin" in said and "hint:" in said
    assert not (tmp_path / "was-called").exists()
    torch.save({"a": torch.ones(1)}, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert "1.6" in lorashard("inspect", tmp_path / "old.bin", code=65).stderr


def sgm_name(path):
    """SDXL's layers as sd-scripts names them, from its own description: blocks counted through."""
    words = path.split(".")
    if path in ("conv_in", "conv_out"):
        return {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}[path]
    if words[0] in ("time_embedding", "add_embedding"):
        return {"time_embedding": "time_embed", "add_embedding": "label_emb.0"}[words[0]] + (".0" if words[1] == "linear_1" else ".2")
    resnet = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
    if words[0] == "mid_block":
        index = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(words[1:3])]
        rest = ".".join(words[3:])
        return f"middle_block.{index}." + (resnet[rest] if words[1] == "resnets" else rest)
    block, part, layer, rest = int(words[1]), words[2], int(words[3]), ".".join(words[4:])
    if words[0] == "down_blocks":
        if part == "downsamplers":
            return f"input_blocks.{3 * block + 3}.0.op"
        return f"input_blocks.{1 + 3 * block + layer}." + ("0." + resnet[rest] if part == "resnets" else "1." + rest)
    if part == "upsamplers":
        return f"output_blocks.{3 * block + 2}.2.{rest}"
    return f"output_blocks.{3 * block + layer}." + ("0." + resnet[rest] if part == "resnets" else "1." + rest)


def test_kohya_names_of_sdxl(tmp_path):
    layers = cases.layers_of(cases.make_pipeline("sdxl"), cases.EVERYTHING)
    pairs = cases.make_pairs(layers)
    name = lambda component, path: cases.KOHYA_PREFIX[component].replace("te_", "te1_") + cases.flat(
        sgm_name(path) if component == "unet" else path)
    state = cases.spell(pairs, lambda c, p: name(c, p) + ".lora_down.weight", lambda c, p: name(c, p) + ".lora_up.weight",
                        lambda c, p: name(c, p) + ".alpha")
    state["bundle_emb.a_word.string_to_param.*"] = torch.ones(3, 4)  # OneTrainer's
    save_file(state, tmp_path / "adapter.safetensors")
    assert_means(tmp_path, tmp_path / "adapter.safetensors", layers, pairs)
    found = json.loads(lorashard("inspect", tmp_path / "adapter.safetensors", "--json", "--all").stdout)
    assert found["base"] == "SDXL" and found["format"] == "kohya" and len(found["layers"]) == len(pairs)
    assert found["skipped"] == ["bundle_emb.a_word.string_to_param.*"] and found["alphas"] == {f"{cases.ALPHA:g}": len(pairs)}
    # And written again, the same names come out.
    lorashard("convert", tmp_path / "adapter.safetensors", tmp_path / "again.safetensors", "--to", "kohya")
    again = load_file(tmp_path / "again.safetensors")
    state.pop("bundle_emb.a_word.string_to_param.*")
    assert again.keys() == state.keys() and all(torch.equal(again[key], state[key]) for key in state)


def test_unknown_keys_and_torn_layers_are_listed(sd15, tmp_path):
    _, pairs = sd15
    state = cases.SPELLINGS["kohya"](pairs)
    path = tmp_path / "adapter.safetensors"
    save_file({**state, "lora_unet_down_blocks_9_attn.lora_down.weight": torch.ones(2, 2), "what.is_this": torch.ones(1)}, path)
    said = lorashard("inspect", path, code=65).stderr
    assert "unknown keys (2)" in said and "lora_unet_down_blocks_9_attn" in said and "what.is_this" in said
    torn = sorted(key for key in state if key.endswith("lora_up.weight"))[0]
    save_file({key: value for key, value in state.items() if key != torn}, path)
    assert "has no up" in lorashard("inspect", path, code=65).stderr


# ---- LyCORIS

LINEAR = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "down_blocks.0.resnets.0.conv1"
KINDS = {"locon": LoConModule, "loha": LohaModule, "lokr": LokrModule}
OPTIONS = {
    "plain": {}, "tucker": {"use_tucker": True}, "dora": {"weight_decompose": True},
    "dora of inputs": {"weight_decompose": True, "wd_on_out": False},
    "decompose both": {"decompose_both": True, "factor": 8},
}


def make_lycoris(kind, option):
    torch.manual_seed(4)
    made = {}
    for path, layer in ((LINEAR, torch.nn.Linear(64, 96)), (CONV, torch.nn.Conv2d(64, 96, 3, padding=1))):
        module = KINDS[kind]("lora_unet_" + cases.flat(path), layer, 1.0, 3, 2, **OPTIONS[option])
        for name, parameter in module.named_parameters():
            if "dora_scale" in name:
                parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
            elif not name.startswith("org"):
                torch.nn.init.normal_(parameter, std=0.3)
        made[path] = module, layer
    return made


@pytest.mark.parametrize("kind, option", [(kind, option) for kind in KINDS for option in OPTIONS
                                          if option != "decompose both" or kind == "lokr"])
def test_lycoris_deltas(tmp_path, kind, option):
    """Against the modules' forward: get_merged_weight() of lycoris-lora 4.1 squares the scale of LoHa and LoKr."""
    made = make_lycoris(kind, option)
    state = {f"lora_unet_{cases.flat(path)}.{name}": value.detach().contiguous()
             for path, (module, _) in made.items() for name, value in module.custom_state_dict().items()}
    save_file(state, tmp_path / "adapter.safetensors")
    layers = {("unet", path): layer.weight for path, (_, layer) in made.items()}
    found = deltas(tmp_path, tmp_path / "adapter.safetensors", layers)
    inputs = {LINEAR: torch.randn(256, 64), CONV: torch.randn(16, 64, 9, 9)}
    for path, (module, layer) in made.items():
        x = inputs[path]
        with torch.no_grad():
            expected = module(x) - layer(x)
        assert_close(module.op(x, found["unet." + path], **module.kw_dict), expected, 1e-5)


def test_lycoris_full_differences(tmp_path):
    layers = {("unet", LINEAR): torch.randn(24, 16), ("unet", CONV): torch.randn(24, 16, 3, 3)}
    diffs = {key: torch.randn_like(weight) for key, weight in layers.items()}
    save_file({f"lora_unet_{cases.flat(path)}.diff": diff for (_, path), diff in diffs.items()}, tmp_path / "adapter.safetensors")
    found = deltas(tmp_path, tmp_path / "adapter.safetensors", layers)
    assert all(torch.equal(found["unet." + path], diff) for (_, path), diff in diffs.items())


@pytest.mark.parametrize("kind", ["loha", "lokr"])
def test_singular_values_make_pairs_of_the_other_kinds(tmp_path, kind):
    made = make_lycoris(kind, "plain")
    state = {f"lora_unet_{cases.flat(path)}.{name}": value.detach().contiguous()
             for path, (module, _) in made.items() for name, value in module.custom_state_dict().items()}
    save_file(state, tmp_path / "adapter.safetensors")
    layers = {("unet", path): layer.weight for path, (_, layer) in made.items()}
    exact = deltas(tmp_path, tmp_path / "adapter.safetensors", layers)
    said = lorashard("convert", tmp_path / "adapter.safetensors", tmp_path / "no.safetensors", "--to", "kohya", code=2).stderr
    assert "--rank" in said
    for rank in (3, 96):
        out = tmp_path / f"rank{rank}.safetensors"
        said = lorashard("convert", tmp_path / "adapter.safetensors", out, "--to", "kohya", "--rank", rank).stderr
        found, whole, rest = deltas(tmp_path, out, layers), 0, 0
        for key, value in exact.items():
            singular = torch.linalg.svdvals(value.flatten(1).double())
            error = (found[key] - value).double().norm() ** 2
            best = (singular[rank:] ** 2).sum()
            assert abs(error - best) <= 1e-5 * (singular ** 2).sum()
            whole, rest = whole + (singular ** 2).sum(), rest + best
        assert f"relative error {(rest / whole).sqrt():.2e}" in said or rank == 96


# ---- what is written, loaded elsewhere

class Said(logging.Handler):
    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


@pytest.fixture
def said():
    handler, loggers = Said(), [logging.getLogger(name) for name in ("diffusers", "peft")]
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.lines
    for logger in loggers:
        logger.removeHandler(handler)


def assert_same_outputs(pipeline, expected, tolerance=1e-5):
    for name, value in cases.outputs(pipeline).items():
        assert_close(value, expected[name], tolerance)


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("targets", ["attention", "everything"])
@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_diffusers_loads_what_is_written(tmp_path, said, base, targets, layout):
    pipeline = cases.make_pipeline(base)
    # Of the text encoders the attention alone: diffusers has no name for the rest of a kohya file's.
    pattern = cases.ATTENTION if targets == "attention" else (
        r"attn\d\..*" + cases.ATTENTION + "|self_attn.*" + cases.ATTENTION + r"|ff\.net|conv1|conv2|time_emb_proj|proj_in|proj_out|conv_shortcut|samplers")
    layers = cases.layers_of(pipeline, pattern)
    pairs = cases.make_pairs(layers)
    state = cases.spell(pairs, lambda c, p: cases.kohya(c, p, ".lora_down.weight"), lambda c, p: cases.kohya(c, p, ".lora_up.weight"),
                        lambda c, p: cases.kohya(c, p, ".alpha"))
    save_file(state, tmp_path / "in.safetensors")
    lorashard("convert", tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--to", layout)
    pipeline.load_lora_weights(tmp_path, weight_name="out.safetensors")
    assert not said, said
    expected = cases.outputs(cases.merged(cases.make_pipeline(base), pairs, cases.ALPHA / cases.RANK))
    assert_same_outputs(pipeline, expected)
    plain = cases.outputs(cases.make_pipeline(base))
    for name, value in plain.items():
        assert (value - expected[name]).norm() > 1e-2 * value.norm(), "the adapter changes too little for its loading to be seen"


def test_peft_loads_what_is_written(tmp_path):
    pipeline = cases.make_pipeline("sd15")
    pairs = {key: pair for key, pair in cases.make_pairs(cases.layers_of(pipeline, cases.EVERYTHING)).items() if key[0] == "unet"}
    save_file(cases.SPELLINGS["mixed"](pairs), tmp_path / "in.safetensors")
    lorashard("convert", tmp_path / "in.safetensors", tmp_path / "peft", "--to", "peft")
    loaded = PeftModel.from_pretrained(pipeline.unet, tmp_path / "peft" / "unet")
    names = {name for name, _ in loaded.named_parameters() if ".lora_" in name}
    assert len(names) == 2 * len(pairs)
    expected = cases.outputs(cases.merged(cases.make_pipeline("sd15"), pairs, cases.ALPHA / cases.RANK))["unet"]
    pipeline.unet = loaded.get_base_model()
    assert_close(cases.outputs(pipeline)["unet"], expected, 1e-5)


def test_ranks_that_differ_survive_every_layout(sd15, tmp_path, said):
    layers, pairs = sd15
    pairs = {key: (down[:2], up[:, :2]) if "attn1" in key[1] else (down, up) for key, (down, up) in pairs.items()}
    save_file(cases.SPELLINGS["diffusers"](pairs), tmp_path / "in.safetensors")  # alpha = 6/4 of any rank
    before = tmp_path / "in.safetensors"
    for layout, out in (("kohya", "k.safetensors"), ("peft", "p"), ("diffusers", "d.safetensors")):
        lorashard("convert", before, tmp_path / out, "--to", layout)
        before = tmp_path / out
        assert_means(tmp_path, before, layers, pairs)
    alphas = {key: value.item() for key, value in load_file(tmp_path / "k.safetensors").items() if key.endswith(".alpha")}
    assert len({alpha for key, alpha in alphas.items() if key.startswith("lora_unet_")}) == 1
    pipeline = cases.make_pipeline("sd15")
    pipeline.load_lora_weights(tmp_path, weight_name="k.safetensors")
    assert not said, said
    assert_same_outputs(pipeline, cases.outputs(cases.merged(cases.make_pipeline("sd15"), pairs, cases.ALPHA / cases.RANK)))


def test_dora_is_kept_by_every_layout(sd15, tmp_path):
    layers, pairs = sd15
    layers = {key: weight for key, weight in layers.items() if key[0] == "unet"}
    state = {}
    for (component, path), weight in layers.items():
        down, up = pairs[component, path]
        base = cases.kohya(component, path, "")
        state |= {base + ".lora_down.weight": down, base + ".lora_up.weight": up, base + ".alpha": torch.tensor(cases.ALPHA),
                  base + ".dora_scale": weight.norm(dim=1, keepdim=True) * 1.3}
    save_file(state, tmp_path / "in.safetensors")
    expected = deltas(tmp_path, tmp_path / "in.safetensors", layers)
    before = tmp_path / "in.safetensors"
    for layout, out in (("diffusers", "d.safetensors"), ("peft", "p"), ("kohya", "k.safetensors")):
        lorashard("convert", before, tmp_path / out, "--to", layout)
        before = tmp_path / out
        found = deltas(tmp_path, before, layers)
        for key in expected:
            assert_close(found[key], expected[key])
    pipeline = cases.make_pipeline("sd15")
    pipeline.load_lora_weights(tmp_path, weight_name="d.safetensors")
    loaded = cases.outputs(pipeline)["unet"]
    merged = cases.make_pipeline("sd15")
    for name, module in merged.unet.named_modules():
        if "unet." + name in expected:
            module.weight.data += expected["unet." + name]
    assert_close(loaded, cases.outputs(merged)["unet"], 1e-5)


def test_dora_of_inputs_is_refused_where_no_layout_holds_it(tmp_path):
    made = make_lycoris("locon", "dora of inputs")
    state = {f"lora_unet_{cases.flat(path)}.{name}": value.detach().contiguous()
             for path, (module, _) in made.items() for name, value in module.custom_state_dict().items()}
    save_file(state, tmp_path / "adapter.safetensors")
    said = lorashard("convert", tmp_path / "adapter.safetensors", tmp_path / "d.safetensors", "--to", "diffusers", code=65).stderr
    assert "--resolve-dora" in said


def test_kohya_metadata_is_small_and_true(sdxl, tmp_path):
    _, pairs = sdxl
    save_file(cases.SPELLINGS["lora_A and lora_B"](pairs), tmp_path / "in.safetensors")
    lorashard("convert", tmp_path / "in.safetensors", tmp_path / "k.safetensors", "--to", "kohya")
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == str(cases.RANK) and metadata["ss_network_module"] == "networks.lora"
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"


# ---- merging

@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    lorashard("init-base", "--preset", "tiny-sd15", folder / "base")
    return folder / "base"


def test_merging_into_a_base(base, tmp_path):
    weights = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    layers = {("unet", key.removesuffix(".weight")): value for key, value in weights.items()
              if key.endswith((".to_q.weight", ".conv1.weight", ".ff.net.2.weight", ".proj_in.weight"))}
    pairs = cases.make_pairs(layers)
    save_file(cases.SPELLINGS["mixed"](pairs), tmp_path / "adapter.safetensors")
    for scale in (0, 0.7):
        run(PROBE, "apply", base, tmp_path / "adapter.safetensors", scale, tmp_path / "out.safetensors")
        found = load_file(tmp_path / "out.safetensors")
        with safe_open(tmp_path / "out.safetensors", "pt") as file:
            assert int(file.metadata()["changed"]) == (0 if scale == 0 else len(pairs))
        for (_, path), weight in layers.items():
            expected = weight.double() + scale * cases.delta(pairs["unet", path], cases.ALPHA / cases.RANK)
            assert_close(found[f"unet.{path}.weight"], expected, 1e-6)


def test_an_adapter_of_another_base_is_refused(base, sdxl, tmp_path):
    _, pairs = sdxl
    save_file(cases.SPELLINGS["lora_A and lora_B"](pairs), tmp_path / "adapter.safetensors")
    run(PROBE, "apply", base, tmp_path / "adapter.safetensors", 1, tmp_path / "out.safetensors", code=65)
