"""Small random pipelines of the layout of SD 1.5 and SDXL, and one LoRA for them, written in every spelling there is."""

import json
import re

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

RANK, ALPHA = 4, 6.0
TEXT_WIDTH = 32

UNETS = {
    "sd15": dict(block_out_channels=(16, 32, 64, 64), attention_head_dim=4, cross_attention_dim=TEXT_WIDTH),
    "sdxl": dict(block_out_channels=(16, 32, 64), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                 up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), attention_head_dim=(2, 4, 8),
                 transformer_layers_per_block=(1, 2, 10), use_linear_projection=True, addition_embed_type="text_time",
                 addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + TEXT_WIDTH,
                 cross_attention_dim=2 * TEXT_WIDTH),
}


def make_unet(name):
    torch.manual_seed(0)
    return UNet2DConditionModel(sample_size=8, norm_num_groups=8, **UNETS[name]).requires_grad_(False).eval()


def make_text_encoder(with_projection):
    torch.manual_seed(1)
    config = CLIPTextConfig(hidden_size=TEXT_WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                            projection_dim=TEXT_WIDTH, vocab_size=100, max_position_embeddings=16, eos_token_id=99)
    return (CLIPTextModelWithProjection if with_projection else CLIPTextModel)(config).requires_grad_(False).eval()


def make_pipeline(name):
    """Without what LoRA has nothing to do with."""
    if name == "sd15":
        return StableDiffusionPipeline(
            vae=None, text_encoder=make_text_encoder(False), tokenizer=None, unet=make_unet(name), scheduler=None,
            safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    return StableDiffusionXLPipeline(
        vae=None, text_encoder=make_text_encoder(False), text_encoder_2=make_text_encoder(True), tokenizer=None,
        tokenizer_2=None, unet=make_unet(name), scheduler=None)


def components_of(pipeline):
    names = ["unet", "text_encoder"] + (["text_encoder_2"] if isinstance(pipeline, StableDiffusionXLPipeline) else [])
    return {name: getattr(pipeline, name) for name in names}


def diffusers_path(component, name):
    """A module's name as adapter files have it: transformers 5 dropped "text_model." from CLIPTextModel."""
    if component == "unet" or name.startswith(("text_model.", "text_projection")):
        return name
    return "text_model." + name


ATTENTION = r"(to_[qkv]|to_out\.0|[qkv]_proj|out_proj)$"
EVERYTHING = ""  # every Linear and Conv2d


def layers_of(pipeline, pattern):
    """{(component, path): weight} of the Linear and Conv2d layers whose path matches."""
    found = {}
    for component, model in components_of(pipeline).items():
        for name, module in model.named_modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) and re.search(pattern, name):
                found[component, diffusers_path(component, name)] = module.weight
    return found


def make_pairs(layers, rank=RANK, seed=3):
    """{(component, path): (down, up)}, large enough to be seen."""
    generator = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=generator)
    pairs = {}
    for key, weight in layers.items():
        down = randn(rank, *weight.shape[1:]) / weight[0].numel() ** 0.5
        pairs[key] = down, 0.3 * randn(weight.shape[0], rank, *(1,) * (weight.dim() - 2))
    return pairs


def delta(pair, scale):
    down, up = pair
    return scale * (up.flatten(1).double() @ down.flatten(1).double()).reshape(up.shape[0], *down.shape[1:])


def merged(pipeline, pairs, scale):
    """The pipeline with W + scale * up down in place: what every loader must come to."""
    for component, model in components_of(pipeline).items():
        for name, module in model.named_modules():
            pair = pairs.get((component, diffusers_path(component, name)))
            if pair is not None and hasattr(module, "weight"):
                module.weight.data = (module.weight.double() + delta(pair, scale)).float()
    return pipeline


@torch.no_grad()
def outputs(pipeline):
    generator = torch.Generator().manual_seed(5)
    randn = lambda *shape: torch.randn(*shape, generator=generator)
    parts = components_of(pipeline)
    unet = parts["unet"]
    kwargs = {}
    if "text_encoder_2" in parts:
        kwargs["added_cond_kwargs"] = {"text_embeds": randn(2, TEXT_WIDTH), "time_ids": torch.ones(2, 6)}
    found = {"unet": unet(randn(2, 4, 8, 8), torch.tensor([3, 700]), randn(2, 7, unet.config.cross_attention_dim), **kwargs).sample}
    ids = torch.randint(0, 99, (2, 9), generator=generator)
    for name in parts:
        if name != "unet":
            found[name] = parts[name](ids).last_hidden_state
    return found


def flat(path):
    return path.replace(".", "_")


# ---- spellings: {key: tensor} and metadata of a file that means `pairs` at ALPHA / RANK

def folded(pairs):
    return {key: (down, up * (ALPHA / RANK)) for key, (down, up) in pairs.items()}


def spell(pairs, down_key, up_key, alpha_key=None):
    state = {}
    for (component, path), (down, up) in (pairs if alpha_key else folded(pairs)).items():
        state[down_key(component, path)], state[up_key(component, path)] = down.contiguous(), up.contiguous()
        if alpha_key:
            state[alpha_key(component, path)] = torch.tensor(ALPHA)
    return state


KOHYA_PREFIX = {"unet": "lora_unet_", "text_encoder": "lora_te_", "text_encoder_2": "lora_te2_"}


def kohya(component, path, end, prefixes=KOHYA_PREFIX):
    return prefixes[component] + flat(path) + end


def old_processor(component, path, which):
    """diffusers before 0.24."""
    if component == "unet":
        path = re.sub(r"\.(to_[qkv])$", r".processor.\1_lora", path)
        path = re.sub(r"\.to_out\.0$", ".processor.to_out_lora", path)
        return f"{path}.{which}.weight"
    for new, old in (("q_proj", "to_q"), ("k_proj", "to_k"), ("v_proj", "to_v"), ("out_proj", "to_out")):
        path = re.sub(rf"\.{new}$", f".{old}_lora", path)
    return f"{component}.{path}.{which}.weight"


def modern(component, path, which):
    if component != "unet":
        return f"{component}.{path}.lora_linear_layer.{which}.weight"
    return f"unet.{path}.lora.{which}.weight"


def mixed(component, path, which):
    """What diffusers' own saver writes for more than attention."""
    if component == "unet" and not re.search(ATTENTION, path):
        return f"unet.{path}.lora_{'A' if which == 'down' else 'B'}.weight"
    return modern(component, path, which)


def with_ab(component, path, which):
    return f"{component}.{path}.lora_{'A' if which == 'down' else 'B'}.weight"


SPELLINGS = {
    "diffusers": lambda pairs: spell(pairs, lambda c, p: modern(c, p, "down"), lambda c, p: modern(c, p, "up")),
    "unet.unet.": lambda pairs: spell(pairs, lambda c, p: c + "." + modern(c, p, "down"), lambda c, p: c + "." + modern(c, p, "up")),
    "attention processors": lambda pairs: spell(pairs, lambda c, p: old_processor(c, p, "down"), lambda c, p: old_processor(c, p, "up")),
    "without unet.": lambda pairs: spell(pairs, lambda c, p: modern(c, p, "down").removeprefix("unet."),
                                         lambda c, p: modern(c, p, "up").removeprefix("unet.")),
    "mixed": lambda pairs: spell(pairs, lambda c, p: mixed(c, p, "down"), lambda c, p: mixed(c, p, "up")),
    "lora_A and lora_B": lambda pairs: spell(pairs, lambda c, p: with_ab(c, p, "down"), lambda c, p: with_ab(c, p, "up")),
    "without text_model.": lambda pairs: spell(pairs, lambda c, p: with_ab(c, p, "down").replace("text_model.", ""),
                                               lambda c, p: with_ab(c, p, "up").replace("text_model.", "")),
    "kohya": lambda pairs: spell(pairs, lambda c, p: kohya(c, p, ".lora_down.weight"), lambda c, p: kohya(c, p, ".lora_up.weight"),
                                 lambda c, p: kohya(c, p, ".alpha")),
    "kohya with te1": lambda pairs: {key.replace("lora_te_", "lora_te1_"): value for key, value in SPELLINGS["kohya"](pairs).items()},
    "kohya with dots": lambda pairs: spell(pairs, lambda c, p: f"{c.replace('text_encoder', 'clip_l')}.{p}.lora_down.weight",
                                           lambda c, p: f"{c.replace('text_encoder', 'clip_l')}.{p}.lora_up.weight",
                                           lambda c, p: f"{c.replace('text_encoder', 'clip_l')}.{p}.alpha"),
}


def write_peft(folder, pairs):
    """PEFT's folders, one a model, with alpha in the config."""
    for component in {component for component, _ in pairs}:
        state = {}
        for (owner, path), (down, up) in pairs.items():
            if owner == component:
                state[f"base_model.model.{path}.lora_A.weight"] = down.contiguous()
                state[f"base_model.model.{path}.lora_B.weight"] = up.contiguous()
        (folder / component).mkdir(parents=True)
        save_file(state, folder / component / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"]}
        (folder / component / "adapter_config.json").write_text(json.dumps(config))
