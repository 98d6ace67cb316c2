"""Small random UNets of the shapes of SD 1.x, 2.x and SDXL, and a run of unet_probe on one of them."""

import os
import subprocess

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

PROBE = os.path.join(os.environ["LORASHARD_BUILD_DIR"], "tests", "unet_probe")

CONFIGS = {
    "sd15": dict(attention_head_dim=8, use_linear_projection=False),
    "sd21": dict(attention_head_dim=(2, 4, 8, 8), use_linear_projection=True, upcast_attention=True),
    "deeper": dict(
        attention_head_dim=4,
        use_linear_projection=True,
        layers_per_block=1,
        transformer_layers_per_block=(1, 2, 3),
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    ),
    "sdxl": dict(
        attention_head_dim=(2, 4, 8),
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 4),
        block_out_channels=(32, 64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=16,
        projection_class_embeddings_input_dim=48 + 6 * 16,
    ),
}


def make_unet(name, seed=0):
    """Weights away from their initial values, so that no bias or norm is trivially right."""
    torch.manual_seed(seed)
    settings = dict(
        sample_size=8, block_out_channels=(32, 64, 128, 128), cross_attention_dim=64, norm_num_groups=8
    )
    unet = UNet2DConditionModel(**{**settings, **CONFIGS[name]}).requires_grad_(False)
    for parameter in unet.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.1 * torch.randn_like(parameter))
    return unet.eval()


def make_inputs(unet, batch=2, height=8, width=8, tokens=77, seed=1):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator)

    inputs = {
        "sample": randn(batch, 4, height, width),
        "timesteps": torch.randint(0, 1000, (batch,), generator=generator),
        "encoder_hidden_states": randn(batch, tokens, unet.config.cross_attention_dim),
    }
    if unet.config.addition_embed_type == "text_time":
        dim = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        inputs["text_embeds"] = randn(batch, dim)
        inputs["time_ids"] = torch.randint(0, 2000, (batch, 6), generator=generator).float()
    return inputs


def forward(unet, inputs):
    added = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs}
    return unet(inputs["sample"], inputs["timesteps"], inputs["encoder_hidden_states"], added_cond_kwargs=added).sample


def run_probe(folder, inputs, threads=1, **metadata):
    """The tensors and the files unet_probe writes for the model in folder/unet."""
    out = folder / "out"
    out.mkdir(exist_ok=True)
    save_file(inputs, folder / "inputs.safetensors", metadata={key: str(value) for key, value in metadata.items()})
    subprocess.run(
        [PROBE, folder, folder / "inputs.safetensors", out], check=True, env={**os.environ, "OMP_NUM_THREADS": str(threads)}
    )
    return load_file(out / "out.safetensors"), out


def relative_error(found, expected):
    return ((found.double() - expected.double()).norm() / expected.double().norm()).item()
