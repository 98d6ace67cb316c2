"""A diffusers folder's weights in the original layout (LDM, SGM), as the published single files have them."""

import re

import torch
from safetensors.torch import load_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
          "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
OUTER = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0",
         "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0",
         "conv_out": "out.2"}


def unet_key(key, layers, has_attention):
    """`has_attention[i]`: whether up block i has attentions, since an upsampler stands after them."""
    for name, original in OUTER.items():
        if key.startswith(name + "."):
            return original + key[len(name):]
    if key.startswith("mid_block."):
        kind, index, rest = re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key).groups()
        return f"middle_block.1.{rest}" if kind == "attentions" else f"middle_block.{2 * int(index)}.{resnet(rest)}"
    way, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key).groups()
    block, index = int(block), int(index)
    place = f"input_blocks.{1 + block * (layers + 1) + index}" if way == "down" else f"output_blocks.{block * (layers + 1) + index}"
    if kind == "resnets":
        return f"{place}.0.{resnet(rest)}"
    if kind == "attentions":
        return f"{place}.1.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    return f"output_blocks.{block * (layers + 1) + layers}.{2 if has_attention[block] else 1}.{rest}"


def resnet(rest):
    name, end = rest.rsplit(".", 1)
    return f"{RESNET[name]}.{end}"


def vae_key(key, levels):
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", key)
    key = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", key)
    key = re.sub(r"decoder\.up_blocks\.(\d+)\.resnets\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.block.", key)
    key = re.sub(r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", lambda m: f"decoder.up.{levels - 1 - int(m[1])}.upsample.", key)
    key = re.sub(r"mid_block\.resnets\.(\d)\.", lambda m: f"mid.block_{int(m[1]) + 1}.", key)
    for name, original in {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}.items():
        key = key.replace(f"mid_block.attentions.0.{name}.", f"mid.attn_1.{original}.")
    return key.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")


def open_clip(state):
    """OpenCLIP's layout: q, k and v in one tensor, text_projection transposed."""
    names = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
             "self_attn.out_proj": "attn.out_proj"}
    outer = {"embeddings.position_embedding.weight": "positional_embedding", "embeddings.token_embedding.weight": "token_embedding.weight",
             "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias"}
    state = {key.removeprefix("text_model."): value for key, value in state.items()}
    out = {"logit_scale": torch.tensor(4.6)}
    for key, value in state.items():
        layer = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if key == "text_projection.weight":
            out["text_projection"] = value.T.contiguous()
        elif key in outer:
            out[outer[key]] = value
        elif layer[2] in names:
            out[f"transformer.resblocks.{layer[1]}.{names[layer[2]]}.{layer[3]}"] = value
        elif layer[2] == "self_attn.q_proj":
            parts = [state[key.replace("q_proj", name)] for name in ("q_proj", "k_proj", "v_proj")]
            out[f"transformer.resblocks.{layer[1]}.attn.in_proj_{layer[3]}"] = torch.cat(parts)
    return out


def original_layout(folder, family):
    """`family`: "sd15", "sd21" or "sdxl"."""
    def weights(component):
        stem = "model" if component.startswith("text") else "diffusion_pytorch_model"
        return load_file(folder / component / f"{stem}.safetensors")

    unet, vae = weights("unet"), weights("vae")
    layers = 1 + max(int(m[1]) for key in unet if (m := re.match(r"down_blocks\.0\.resnets\.(\d+)\.", key)))
    levels = 1 + max(int(m[1]) for key in vae if (m := re.match(r"encoder\.down_blocks\.(\d+)\.", key)))
    has_attention = [any(key.startswith(f"up_blocks.{i}.attentions.") for key in unet) for i in range(8)]
    out = {"model.diffusion_model." + unet_key(key, layers, has_attention): value for key, value in unet.items()}
    for key, value in vae.items():
        is_projection = ".attentions.0.to_" in key and key.endswith("weight")
        out["first_stage_model." + vae_key(key, levels)] = value[:, :, None, None].contiguous() if is_projection else value
    named = {key if key.startswith("text_model.") else "text_model." + key: value for key, value in weights("text_encoder").items()}
    if family == "sd21":
        out.update({"cond_stage_model.model." + key: value for key, value in open_clip(named).items()})
    else:
        prefix = "cond_stage_model.transformer." if family == "sd15" else "conditioner.embedders.0.transformer."
        out.update({prefix + key: value for key, value in named.items()})
        out[prefix + "text_model.embeddings.position_ids"] = torch.arange(77)[None]
    if family == "sdxl":
        out.update({"conditioner.embedders.1.model." + key: value for key, value in open_clip(weights("text_encoder_2")).items()})
    # What the published files hold besides.
    out["alphas_cumprod"] = torch.linspace(1, 0, 1000)
    out["model_ema.decay"] = torch.tensor(0.9999)
    return out
